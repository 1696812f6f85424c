"""Passes kept for their gradients: under a byte budget, counted once, freed when they go."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.teacher.graphs import GraphMeter, GraphStore
from services.teacher.passes import Pass, exchange_pass
from services.teacher.teaching import Teaching
from services.teacher.transfers import Transfers
from tests.toy_turns import exchange_turn, teacher_of

if TYPE_CHECKING:
    from services.teacher.work import ExchangeTurn


def _turns(count: int) -> list[ExchangeTurn]:
    turn = exchange_turn(teacher_of("module"))
    return [exchange_turn(teacher_of("module"), codec=turn.codec) for _ in range(count)]


def _pass(num_bytes: int, *turns: ExchangeTurn) -> Pass:
    made = Pass(turns)
    made.num_bytes = num_bytes
    return made


def test_passes_over_the_budget_push_the_oldest_out() -> None:
    store = GraphStore(100)
    first, second, third = _turns(3)
    store.put(_pass(60, first))
    kept = _pass(40, second)
    store.put(kept)
    assert (len(store), store.num_bytes) == (2, 100)
    store.put(_pass(30, third))
    assert (len(store), store.num_bytes) == (2, 70)
    assert store.find(first) is None
    assert store.find(second) is kept


def test_a_pass_that_never_fits_is_not_kept_and_replaces_its_older_self() -> None:
    store = GraphStore(100)
    turn, other = _turns(2)
    store.put(_pass(50, other))
    store.put(_pass(50, turn))
    store.put(_pass(10, turn))
    assert store.num_bytes == 60
    store.put(_pass(101, turn))
    assert (len(store), store.num_bytes) == (1, 50)
    assert store.find(turn) is None


def test_a_pass_goes_with_the_last_of_its_turns() -> None:
    store = GraphStore(100)
    first, second = _turns(2)
    both = _pass(50, first, second)
    store.put(both)
    assert store.awaited(both) == {first, second}
    store.release(first)
    store.release(first)
    assert (store.find(first), store.find(second), store.num_bytes) == (None, both, 50)
    assert store.awaited(both) == {second}
    store.release(second)
    assert (len(store), store.num_bytes, store.awaited(both)) == (0, 0, frozenset())


def test_a_pass_that_is_removed_is_not_found_by_any_of_its_turns() -> None:
    store = GraphStore(100)
    turns = _turns(2)
    both = _pass(50, *turns)
    store.put(both)
    store.remove(both)
    store.remove(both)
    assert [store.find(turn) for turn in turns] == [None, None]
    assert (len(store), store.num_bytes) == (0, 0)


@given(
    st.lists(st.tuples(st.integers(0, 120), st.sets(st.integers(0, 5), min_size=1)), max_size=12), st.data()
)
def test_the_books_are_right_whatever_comes_and_goes(
    puts: list[tuple[int, set[int]]], data: st.DataObject
) -> None:
    store, turns = GraphStore(100), _turns(6)
    for num_bytes, members in puts:
        store.put(_pass(num_bytes, *(turns[member] for member in sorted(members))))
        for released in data.draw(st.sets(st.integers(0, 5), max_size=2)):
            store.release(turns[released])
        kept = {store.find(turn) for turn in turns} - {None}
        assert len(store) == len(kept)
        assert store.num_bytes == sum(each.num_bytes for each in kept if each is not None) <= 100
        for each in kept:
            assert each is not None
            assert store.awaited(each) == {turn for turn in turns if store.find(turn) is each}


def test_what_several_operations_save_counts_once() -> None:
    leaf = torch.ones(10, requires_grad=True)
    with GraphMeter().measured("a") as num_bytes:
        product = leaf * leaf * leaf
    assert num_bytes == [2 * 40]  # the leaf and the first product
    torch.autograd.backward(product.sum())
    assert leaf.grad is not None
    assert leaf.grad.eq(3).all()


def test_what_is_there_anyway_does_not_count() -> None:
    leaf = torch.ones(10, requires_grad=True)
    with GraphMeter(frozenset({leaf.data_ptr()})).measured("a") as num_bytes:
        product = leaf * leaf * leaf
    assert num_bytes == [40]
    assert product.requires_grad


def test_a_shape_is_measured_once_and_a_failed_measure_is_none() -> None:
    meter, leaf = GraphMeter(), torch.ones(10, requires_grad=True)
    with pytest.raises(RuntimeError), meter.measured("a"):
        raise RuntimeError
    kept = []
    for signature, size in (("a", 10), ("a", 5), ("b", 5)):
        with meter.measured(signature) as num_bytes:
            kept.append(leaf[:size] * leaf[:size].exp())
        kept.append(torch.tensor(num_bytes[0]))
    assert kept[1] == kept[3]
    assert kept[1] != kept[5]


def test_the_shapes_that_are_known_stay_few() -> None:
    meter, leaf = GraphMeter(), torch.ones(1, requires_grad=True)
    for signature in range(4100):
        with meter.measured(signature) as num_bytes:
            product = leaf * leaf
    assert num_bytes == [4]
    assert product.requires_grad
    assert len(meter._known) == 4096


def test_a_counted_graph_that_is_dropped_is_freed() -> None:
    leaf = torch.randn(3, requires_grad=True)
    with GraphMeter().measured("a") as num_bytes:
        saved_by_its_own_node = leaf.exp()
        total = saved_by_its_own_node.sum()
    assert num_bytes == [12]
    alive = weakref.ref(saved_by_its_own_node)
    del saved_by_its_own_node, total
    gc.collect()
    assert alive() is None


def test_the_teachers_parameters_do_not_count_as_graph() -> None:
    teacher = teacher_of("encoder")
    turns = [exchange_turn(teacher, (1, 1), seed=seed) for seed in range(2)]
    (done,), _ = Teaching(teacher, None).forward(turns, with_graph=True)
    parameters = sum(parameter.numel() * 4 for parameter in teacher.parameters())
    assert 0 < done.num_bytes < parameters
    with GraphMeter().measured("everything") as everything:
        exchange_pass(teacher, turns, [None, None], Transfers(teacher.device), with_graph=True)
    assert everything[0] > done.num_bytes
