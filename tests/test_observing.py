"""What the teacher says of an input, from its kept reading, is what the formulas of one turn say."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch

from preceptor.codec import CodecSpec
from preceptor.terms import ObservationKind
from services.teacher.graphs import GraphStore
from services.teacher.observations import ObservationCache
from services.teacher.observing import needed_parts
from services.teacher.own_reading import LOWER, POOLED, UPPER
from services.teacher.teaching import Teaching
from tests.one_turn import observe
from tests.toy import WatchedTeacher
from tests.toy_queue import Stepper
from tests.toy_turns import (
    FAMILIES,
    assert_close,
    assert_gradients,
    codec_of,
    observe_turn,
    ragged,
    teacher_of,
)

if TYPE_CHECKING:
    from services.teacher.families.base import Teacher
    from services.teacher.work import ObserveTurn

KINDS = tuple(ObservationKind)
STATES = (ObservationKind.LOWER_STATE, ObservationKind.UPPER_STATE)


def _teaching(teacher: Teacher, *, cached: bool) -> Teaching:
    return Teaching(teacher, ObservationCache(1 << 24) if cached else None)


def _expected(teacher: Teacher, turn: ObserveTurn) -> dict[str, torch.Tensor]:
    return observe(
        teacher,
        turn.codec,
        turn.inputs,
        kinds=turn.kinds,
        split_layer=turn.split_layer,
        message_mask=turn.message_mask,
    )


def _check(teaching: Teaching, turn: ObserveTurn) -> None:
    """Holds the values and gradients of a turn against `one_turn`; states count where they are valid."""
    (done,), _ = teaching.forward([turn], with_graph=True)
    expected = _expected(teaching.teacher, turn)
    got = done.values(turn)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if name == "mask":
            assert torch.equal(got[name], value)
        elif name in STATES:
            assert_close(got[name][expected["mask"]], value[expected["mask"]])
        else:
            assert_close(got[name].detach(), value.detach())
    if turn.codec is not None:
        ours = [name for name, value in expected.items() if value.requires_grad]
        grads = {name: torch.randn(expected[name].shape) for name in ours}
        parameters = dict(turn.codec.named_parameters())
        wanted = torch.autograd.grad(
            [expected[name] for name in ours],
            list(parameters.values()),
            list(grads.values()),
            allow_unused=True,
        )
        named = {name: grad for name, grad in zip(parameters, wanted, strict=True) if grad is not None}
        gradients = done.backward({turn: grads})[turn]
        assert gradients.message is None
        assert_gradients(gradients, None, named)


@pytest.mark.parametrize("cached", [False, True], ids=["bare", "cached"])
@pytest.mark.parametrize("kind", ["classifier", "decoder", "module"])
def test_every_set_of_kinds_is_observed_as_by_the_formulas(kind: str, cached: bool) -> None:  # noqa: FBT001
    teaching = _teaching(teacher_of(kind), cached=cached)
    sizes = range(1, len(KINDS) + 1) if kind == "classifier" else (1, len(KINDS))
    for size in sizes:
        for kinds in itertools.combinations(KINDS, size):
            _check(teaching, observe_turn(teaching.teacher, kinds))


@pytest.mark.parametrize("cached", [False, True], ids=["bare", "cached"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_messages_have_the_positions_that_were_asked_for(kind: str, cached: bool) -> None:  # noqa: FBT001
    teaching = _teaching(teacher_of(kind), cached=cached)
    kinds = [each for each in KINDS if each.needs_codec]
    for mask in (ragged((1, 1), 1), ragged((4, 2), 4), ragged((7, 7), 7)):
        _check(teaching, observe_turn(teaching.teacher, kinds, message_mask=mask))
    spec = CodecSpec(message_dim=3, message_len=2)
    codec = codec_of(teaching.teacher, spec)
    _check(teaching, observe_turn(teaching.teacher, kinds, codec=codec, message_mask=ragged((2, 2), 2)))


def test_only_the_parts_that_are_needed_are_read() -> None:
    teacher = teacher_of("classifier")
    assert needed_parts(observe_turn(teacher, [ObservationKind.LOWER_MESSAGE])) == {LOWER}
    assert needed_parts(observe_turn(teacher, [ObservationKind.STATE_CONSISTENCY])) == {LOWER, UPPER}
    assert needed_parts(observe_turn(teacher, [ObservationKind.POOLED_STATE])) == {POOLED}
    reads_lower = observe_turn(teacher, [ObservationKind.POOLED_STATE], reads_lower=True)
    assert needed_parts(reads_lower) == {LOWER, POOLED}


def test_nothing_is_read_ahead_where_it_can_not_be_kept() -> None:
    used: list[str] = []
    teacher = WatchedTeacher(teacher_of("classifier"))
    teaching = Teaching(teacher, None)
    teacher.watch = used.append
    turn = observe_turn(teacher_of("classifier"), KINDS, ahead=True, codec=None, wants_gradient=False)
    teaching.forward([turn], with_graph=False)
    assert used == []


@pytest.mark.parametrize("cached", [False, True], ids=["bare", "cached"])
def test_reading_ahead_returns_nothing(cached: bool) -> None:  # noqa: FBT001
    teaching = _teaching(teacher_of("classifier"), cached=cached)
    turn = observe_turn(teaching.teacher, KINDS, ahead=True, codec=None, wants_gradient=False)
    (done,), num_cached_rows = teaching.forward([turn], with_graph=False)
    assert done.values(turn) == {}
    assert num_cached_rows == ({turn: 0} if cached else {})  # without a cache nothing is read


def test_observes_of_many_tenants_share_a_pass_of_reading() -> None:
    teacher = teacher_of("classifier")
    stepper = Stepper(teacher, cache=ObservationCache(1 << 24))
    turns = [observe_turn(teacher, KINDS, lengths=(5, 2 + seed), seed=seed) for seed in range(4)]
    results = stepper.forward(turns)
    assert [len(batch) for batch in stepper.queue.batches] == [4]
    for turn, result in zip(turns, results, strict=True):
        for name, value in _expected(teacher, turn).items():
            if name not in (*STATES, "mask"):
                assert_close(result.values[name], value.detach())
        assert result.cost.num_conversations == 4
    assert len(stepper.graphs) == 4


def test_gradients_of_constants_are_none() -> None:
    turn = observe_turn(teacher_of("module"), (STATES[0], ObservationKind.LOWER_MESSAGE), lengths=(4, 4))
    stepper = Stepper(teacher_of("module"))
    stepper.forward([turn])
    constant = {"lower_state": torch.ones(2, 4, 8)}
    both = {**constant, "lower_message": torch.ones(2, 4, 3)}
    (none,), (some,) = stepper.backward([(turn, constant)]), stepper.backward([(turn, both)])
    assert (none.message, none.codec, none.retained) == (None, {}, True)
    assert set(some.codec) == {"encoder.body.weight", "encoder.body.bias"}
    assert not some.retained


def test_without_room_for_graphs_gradients_are_computed_again() -> None:
    teacher = teacher_of("classifier")
    turn = observe_turn(teacher)
    grads = {"lower_message": torch.ones(2, 5, 3)}
    kept, bare = Stepper(teacher), Stepper(teacher, max_retained_bytes=0)
    results = []
    for stepper in (kept, bare):
        stepper.forward([turn])
        results += stepper.backward([(turn, grads)])
    assert [result.retained for result in results] == [True, False]
    assert_gradients(results[1], None, results[0].codec)
    assert GraphStore(0).num_bytes == len(bare.graphs) == 0
