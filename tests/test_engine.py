"""The engine: one thread, work in order, graphs under a budget, no failure that stops it."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from typing import TYPE_CHECKING

import pytest
import torch

from preceptor.codec import TeacherCodec
from preceptor.terms import ObservationKind, Reading
from services.teacher.engine import Engine, FifoQueue, ForwardWork
from services.teacher.errors import OverloadedError
from services.teacher.graphs import GraphStore, counted_graph_bytes
from services.teacher.work import ExchangeTurn, Graph, ObserveTurn, compute_gradients
from tests.toy import HIDDEN, WatchedTeacher
from tests.toy_frames import SPEC, codec_state, ids, message
from tests.toy_server import GatedQueue

if TYPE_CHECKING:
    from concurrent.futures import Future

    from services.teacher.families.base import Teacher
    from services.teacher.work import ForwardResult, GradientsResult

GRADIENTS = {"reply": message(seed=9)}


def _codec() -> TeacherCodec:
    codec = TeacherCodec(SPEC, HIDDEN)
    codec.load_state_dict(codec_state())
    return codec


def _turn(seed: int = 0, *, wants_gradient: bool = True, batch: int = 2) -> ExchangeTurn:
    return ExchangeTurn(
        codec=_codec(),
        codec_version=1,
        message=message(batch, seed=seed),
        mask=torch.ones(batch, 2, dtype=torch.bool),
        reading=Reading.BESIDE,
        split_layer=1,
        inputs={"ids": ids(batch)},
        wants_gradient=wants_gradient,
    )


def _graph(num_bytes: int) -> Graph:
    return Graph({}, None, {}, num_bytes)


def _same(first: GradientsResult, second: GradientsResult) -> bool:
    assert first.message is not None
    assert second.message is not None
    assert first.codec.keys() == second.codec.keys() == codec_state().keys()
    return torch.equal(first.message, second.message) and all(
        torch.equal(gradient, second.codec[name]) for name, gradient in first.codec.items()
    )


def test_work_is_done_in_the_order_it_was_admitted(tiny_teacher: Teacher) -> None:
    engine = Engine(tiny_teacher, queue=FifoQueue(6), max_retained_bytes=0)
    done: list[Future[ForwardResult]] = []
    futures = [engine.forward(_turn(seed)) for seed in range(6)]
    for future in reversed(futures):
        future.add_done_callback(done.append)
    engine.start()
    engine.stop()
    assert done == futures


def test_retained_and_recomputed_graphs_give_the_same_gradients(tiny_teacher: Teacher) -> None:
    results = []
    for max_retained_bytes in (1 << 30, 0):
        engine = Engine(tiny_teacher, queue=FifoQueue(4), max_retained_bytes=max_retained_bytes)
        engine.start()
        turn = _turn()
        engine.forward(turn).result(30)
        results.append(engine.backward(turn, GRADIENTS).result(30))
        engine.stop()
    assert [result.retained for result in results] == [True, False]
    assert _same(*results)


def test_a_second_backward_pass_recomputes_and_gives_the_same(engine: Engine) -> None:
    turn = _turn()
    engine.forward(turn).result(30)
    first, second = (engine.backward(turn, GRADIENTS).result(30) for _ in range(2))
    assert (first.retained, second.retained) == (True, False)
    assert _same(first, second)


def test_the_teachers_parameters_do_not_count_as_graph(tiny_teacher: Teacher) -> None:
    turn = _turn(batch=1)
    with counted_graph_bytes(frozenset()) as everything:
        turn.forward(tiny_teacher)
    own = frozenset(each.untyped_storage().data_ptr() for each in tiny_teacher.parameters())
    with counted_graph_bytes(own) as without:
        turn.forward(tiny_teacher)
    assert 0 < without[0] < everything[0]


def test_what_several_operations_save_counts_once() -> None:
    leaf = torch.ones(10, requires_grad=True)
    with counted_graph_bytes(frozenset()) as num_bytes:
        product = leaf * leaf * leaf
    assert num_bytes[0] == 2 * 40  # the leaf and the first product
    torch.autograd.backward(product.sum())
    assert leaf.grad is not None
    assert leaf.grad.eq(3).all()


def test_graphs_over_the_budget_push_the_oldest_out() -> None:
    store = GraphStore(100)
    first, second, third = (_turn() for _ in range(3))
    store.put(first, _graph(60))
    store.put(second, _graph(40))
    assert (len(store), store.num_bytes) == (2, 100)
    store.put(third, _graph(30))
    assert (len(store), store.num_bytes) == (2, 70)
    assert store.take(first) is None
    assert store.take(second) is not None
    assert (len(store), store.num_bytes) == (1, 30)


def test_a_graph_that_never_fits_is_not_kept_and_replaces_its_older_self() -> None:
    store = GraphStore(100)
    turn, other = _turn(), _turn()
    store.put(other, _graph(50))
    store.put(turn, _graph(50))
    store.put(turn, _graph(10))
    assert store.num_bytes == 60
    store.put(turn, _graph(101))
    assert (len(store), store.num_bytes) == (1, 50)


def test_the_budget_holds_for_the_engine(tiny_teacher: Teacher) -> None:
    engine = Engine(tiny_teacher, queue=FifoQueue(8), max_retained_bytes=1 << 30)
    engine.start()
    engine.forward(_turn(batch=1)).result(30)
    one = engine.graphs.num_bytes
    engine.stop()
    engine = Engine(tiny_teacher, queue=FifoQueue(8), max_retained_bytes=int(2.5 * one))
    engine.start()
    turns = [_turn(seed, batch=1) for seed in range(3)]
    for turn in turns:
        engine.forward(turn).result(30)
    gradients = {"reply": torch.ones(1, 2, 3)}
    retained = [engine.backward(turn, gradients).result(30).retained for turn in turns]
    engine.stop()
    assert one > 0
    assert retained == [False, True, True]


def test_a_turn_that_wants_no_gradient_is_computed_without_a_graph(engine: Engine) -> None:
    result = engine.forward(_turn(wants_gradient=False)).result(30)
    assert not result.values["reply"].requires_grad
    assert len(engine.graphs) == 0
    with_graph = engine.forward(_turn()).result(30)
    assert torch.equal(with_graph.values["reply"], result.values["reply"])


def test_a_failing_turn_fails_alone(tiny_teacher: Teacher) -> None:
    def watch(name: str) -> None:
        if name == "upper":
            raise RuntimeError("broken")

    teacher = WatchedTeacher(tiny_teacher)
    engine = Engine(teacher, queue=FifoQueue(4), max_retained_bytes=0)
    engine.start()
    teacher.watch = watch
    futures: list[Future[ForwardResult] | Future[GradientsResult]] = [engine.forward(_turn())]
    futures.append(engine.backward(_turn(), GRADIENTS))
    for future in futures:
        with pytest.raises(RuntimeError, match="broken"):
            future.result(30)
    teacher.watch = lambda _: None
    assert engine.forward(_turn()).result(30).values["reply"].shape == (2, 2, 3)
    engine.stop()


def test_a_full_queue_is_overloaded(tiny_teacher: Teacher) -> None:
    engine = Engine(tiny_teacher, queue=FifoQueue(2), max_retained_bytes=0)
    futures = [engine.forward(_turn()) for _ in range(2)]
    with pytest.raises(OverloadedError, match="queue: got one more turn, expected at most 2") as caught:
        engine.backward(_turn(), GRADIENTS)
    assert caught.value.retry_after_s > 0
    engine.start()
    assert all(future.result(30).values for future in futures)
    engine.stop()


def test_cancelled_work_is_not_computed(tiny_teacher: Teacher) -> None:
    used: list[str] = []
    teacher, queue = WatchedTeacher(tiny_teacher), GatedQueue(4)
    engine = Engine(teacher, queue=queue, max_retained_bytes=1 << 30)
    engine.start()
    queue.gate.clear()
    futures = [engine.forward(_turn(seed)) for seed in range(3)]
    assert futures[0].cancel()
    assert futures[1].cancel()
    teacher.watch = used.append
    queue.gate.set()
    futures[2].result(30)
    engine.stop()
    assert used.count("upper") == 1
    assert len(engine.graphs) == 1


def test_stopping_computes_what_was_admitted_and_takes_nothing_more(tiny_teacher: Teacher) -> None:
    queue = GatedQueue(8)
    engine = Engine(tiny_teacher, queue=queue, max_retained_bytes=0)
    engine.start()
    queue.gate.clear()
    futures = [engine.forward(_turn(seed)) for seed in range(4)]
    engine.stop()
    assert all(future.done() for future in futures)
    assert [future.result(0).values["reply"].shape for future in futures] == [(2, 2, 3)] * 4
    with pytest.raises(OverloadedError):
        engine.forward(_turn())


def test_an_engine_that_never_started_can_be_stopped(tiny_teacher: Teacher) -> None:
    Engine(tiny_teacher, queue=FifoQueue(1), max_retained_bytes=0).stop()


def test_a_closed_queue_gives_out_what_it_has(tiny_teacher: Teacher) -> None:
    queue = FifoQueue(2)
    work = ForwardWork(_turn(), 0.0)
    queue.admit(work)
    queue.close()
    assert queue.next_batch() == [work]
    assert queue.next_batch() is None


def test_closing_wakes_whoever_waits_for_work() -> None:
    queue, batches = FifoQueue(2), []
    thread = threading.Thread(target=lambda: batches.append(queue.next_batch()))
    thread.start()
    queue.close()
    thread.join(30)
    assert batches == [None]


def test_results_say_how_long_they_waited_and_took(tiny_teacher: Teacher) -> None:
    ticks = itertools.count()
    queue = FifoQueue(2)
    engine = Engine(tiny_teacher, queue=queue, max_retained_bytes=0, clock=lambda: float(next(ticks)))
    turn = _turn()
    forward, backward = engine.forward(turn), engine.backward(turn, GRADIENTS)  # at 0 s and 1 s
    engine.start()
    engine.stop()
    assert (forward.result(0).queue_ms, forward.result(0).compute_ms) == (2000.0, 1000.0)
    assert (backward.result(0).queue_ms, backward.result(0).compute_ms) == (3000.0, 1000.0)


def test_gradients_of_constants_are_zero(tiny_teacher: Teacher) -> None:
    turn = ObserveTurn(
        codec=_codec(),
        codec_version=1,
        inputs={"ids": ids()},
        kinds=frozenset({ObservationKind.LOWER_STATE, ObservationKind.LOWER_MESSAGE}),
        split_layer=1,
        message_mask=None,
        wants_gradient=True,
    )
    constant = {"lower_state": torch.ones(2, 4, HIDDEN)}
    assert compute_gradients(turn.forward(tiny_teacher), constant) == (None, {})
    both = {**constant, "lower_message": torch.ones(2, 4, 3)}
    _, gradients = compute_gradients(turn.forward(tiny_teacher), both)
    assert set(gradients) == {"encoder.body.weight", "encoder.body.bias"}
    exchange = _turn().forward(tiny_teacher)
    zero, none = compute_gradients(exchange, {})
    assert zero is not None
    assert not zero.any()
    assert none == {}


def test_a_counted_graph_that_is_dropped_is_freed() -> None:
    leaf = torch.randn(3, requires_grad=True)
    with counted_graph_bytes(frozenset()) as num_bytes:
        saved_by_its_own_node = leaf.exp()
        total = saved_by_its_own_node.sum()
    assert num_bytes[0] == 12
    alive = weakref.ref(saved_by_its_own_node)
    del saved_by_its_own_node, total
    gc.collect()
    assert alive() is None
