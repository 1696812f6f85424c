"""Many tenants on one teacher: one pass for all, exact for each, and bit for bit where it was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.codec import CodecSpec
from preceptor.terms import ObservationKind, Reading
from services.teacher.observations import ObservationCache
from tests.toy import WatchedTeacher
from tests.toy_queue import Stepper
from tests.toy_turns import (
    FAMILIES,
    alone,
    assert_close,
    check_gradients,
    codec_of,
    exchange_turn,
    grad_of,
    inputs_of,
    observe_turn,
    speaker_of,
    teacher_of,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from services.teacher.families.base import Teacher
    from services.teacher.work import ExchangeTurn, ForwardResult, GradientsResult, ObserveTurn

TENANTS = tuple("abcdefgh")


def _turns(teacher: Teacher, count: int = 8, rows: int = 2) -> list[ExchangeTurn]:
    """Turns of one shape, each of another tenant."""
    return [
        exchange_turn(teacher, (rows, 2), seed=seed, speaker=speaker_of(TENANTS[seed % len(TENANTS)]))
        for seed in range(count)
    ]


@pytest.mark.parametrize("kind", FAMILIES)
def test_one_pass_forward_and_one_backward_serve_every_tenant(kind: str) -> None:
    teacher = teacher_of(kind)
    stepper, turns = Stepper(teacher), _turns(teacher)
    replies = stepper.forward(turns)
    gradients = stepper.backward([(turn, grad_of(turn)) for turn in turns])
    assert [len(batch) for batch in stepper.queue.batches] == [8, 8]
    for turn, reply, got in zip(turns, replies, gradients, strict=True):
        assert_close(reply.values["reply"], alone(teacher, turn)[0])
        check_gradients(teacher, turn, got)
        assert got.retained
        for cost in (reply.cost, got.cost):
            assert (cost.num_tenants, cost.num_conversations) == (8, 8)
    assert (len(stepper.graphs), stepper.graphs.num_bytes) == (0, 0)


def test_receipts_count_tenants_and_conversations_apart() -> None:
    teacher = teacher_of("encoder")
    speakers = [speaker_of(tenant, conversation) for tenant, conversation in ("ax", "ax", "ay", "bz")]
    turns = [exchange_turn(teacher, speaker=speaker, seed=n) for n, speaker in enumerate(speakers)]
    for result in Stepper(teacher).forward(turns):
        assert (result.cost.num_tenants, result.cost.num_conversations) == (2, 3)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_readings_lengths_and_codecs_of_one_bucket_share_a_pass(kind: str) -> None:
    teacher = teacher_of(kind)
    two_layer = CodecSpec(kind="two_layer", message_dim=3, hidden_dim=4)
    turns = [
        exchange_turn(teacher, (2, 7)),
        exchange_turn(teacher, (1, 8), codec=codec_of(teacher, two_layer)),
        exchange_turn(teacher, (2, 3), Reading.BESIDE),
        exchange_turn(teacher, (3, 2), Reading.ADD, inputs=inputs_of(teacher, (7, 8, 2))),
    ]
    stepper = Stepper(teacher)
    replies = stepper.forward(turns)
    gradients = stepper.backward([(turn, grad_of(turn)) for turn in turns])
    assert [len(batch) for batch in stepper.queue.batches] == [4, 4]
    for turn, reply, got in zip(turns, replies, gradients, strict=True):
        assert_close(reply.values["reply"], alone(teacher, turn)[0])
        check_gradients(teacher, turn, got)


def test_what_can_not_share_a_pass_does_not_wait_for_it() -> None:
    teacher = teacher_of("encoder")
    turns: list[ExchangeTurn | ObserveTurn] = [
        exchange_turn(teacher),
        exchange_turn(teacher, split_layer=2),
        exchange_turn(teacher, (2, 9)),
        exchange_turn(teacher, wants_gradient=False),
        observe_turn(teacher),
        exchange_turn(teacher, speaker=speaker_of(deterministic=True)),
    ]
    stepper = Stepper(teacher)
    stepper.forward(turns)
    assert [len(batch) for batch in stepper.queue.batches] == [1] * len(turns)


def test_a_module_that_sees_padding_gets_one_shape_at_a_time() -> None:
    teacher = teacher_of("module")
    turns = [
        exchange_turn(teacher, shape, reading) for shape in ((2, 3), (1, 3), (2, 4)) for reading in Reading
    ]
    stepper = Stepper(teacher)
    for turn, result in zip(turns, stepper.forward(turns), strict=True):
        assert_close(result.values["reply"], alone(teacher, turn)[0])
    assert sorted(len(batch) for batch in stepper.queue.batches) == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("max_retained_bytes", [1 << 30, 0])
def test_gradients_are_exact_retained_or_computed_again(max_retained_bytes: int) -> None:
    teacher = teacher_of("encoder")
    stepper, turns = Stepper(teacher, max_retained_bytes=max_retained_bytes), _turns(teacher)
    stepper.forward(turns)
    for turn, got in zip(turns, stepper.backward([(turn, grad_of(turn)) for turn in turns]), strict=True):
        assert got.retained is bool(max_retained_bytes)
        assert got.cost.num_tenants == 8
        check_gradients(teacher, turn, got)


def test_passes_dropped_for_memory_are_computed_again_together() -> None:
    teacher = teacher_of("encoder")
    probe, turns = Stepper(teacher), _turns(teacher)
    probe.forward(turns[:4])
    stepper = Stepper(teacher, max_retained_bytes=int(1.5 * probe.graphs.num_bytes))
    stepper.forward(turns[:4])
    stepper.forward(turns[4:])
    stepper.queue.batches.clear()
    results = stepper.backward([(turn, grad_of(turn)) for turn in turns])
    assert [result.retained for result in results] == [False] * 4 + [True] * 4
    assert [len(batch) for batch in stepper.queue.batches] == [4, 4]
    for turn, got in zip(turns, results, strict=True):
        check_gradients(teacher, turn, got)


def test_latecomers_are_computed_again_together_and_exactly() -> None:
    teacher = teacher_of("encoder")
    stepper, turns = Stepper(teacher), _turns(teacher)
    stepper.forward(turns)
    early = stepper.backward([(turn, grad_of(turn)) for turn in turns[:6]])
    late = stepper.backward([(turn, grad_of(turn)) for turn in turns[6:]])
    assert [len(batch) for batch in stepper.queue.batches] == [8, 6, 2]
    assert [result.retained for result in (*early, *late)] == [True] * 6 + [False] * 2
    for turn, got in zip(turns, (*early, *late), strict=True):
        check_gradients(teacher, turn, got)


def test_a_turn_may_get_other_gradients_in_the_same_breath() -> None:
    teacher = teacher_of("encoder")
    stepper, turns = Stepper(teacher), _turns(teacher, 3)
    stepper.forward(turns)
    asked = [(turns[0], 0), (turns[1], 1), (turns[0], 2), (turns[2], 3), (turns[0], 4)]
    results = stepper.backward([(turn, grad_of(turn, seed)) for turn, seed in asked])
    for (turn, seed), got in zip(asked, results, strict=True):
        check_gradients(teacher, turn, got, seed)
    assert [result.retained for result in results] == [True, True, False, True, False]


def test_a_turn_that_is_repeated_while_it_waits_is_answered_twice() -> None:
    teacher = teacher_of("encoder")
    stepper, turns = Stepper(teacher), _turns(teacher, 2)
    replies = stepper.forward([turns[0], turns[1], turns[0]])
    assert_close(replies[2].values["reply"], replies[0].values["reply"])
    assert stepper.graphs.num_bytes > 0
    for turn, got in zip(turns, stepper.backward([(turn, grad_of(turn)) for turn in turns]), strict=True):
        check_gradients(teacher, turn, got)
    assert len(stepper.graphs) == 0


def test_the_teacher_is_used_once_for_all() -> None:
    teacher = teacher_of("encoder")
    used: list[str] = []
    watched = WatchedTeacher(teacher)
    stepper = Stepper(watched)
    watched.watch = used.append
    turns = [exchange_turn(teacher, (2, 2), Reading.ADD, seed=seed) for seed in range(6)]
    stepper.forward(turns)
    assert used.count("upper") == 1
    stepper.backward([(turn, grad_of(turn)) for turn in turns])
    assert used.count("upper") == 1


@pytest.mark.parametrize("reading", [Reading.BESIDE, Reading.ADD])
def test_exchanges_use_what_was_read_before_and_say_so(reading: Reading) -> None:
    teacher = teacher_of("classifier")
    stepper = Stepper(teacher, cache=ObservationCache(1 << 24))
    turn = exchange_turn(teacher, (2, 2), reading)
    assert turn.inputs is not None
    ahead = observe_turn(
        teacher,
        [ObservationKind.LOGITS],
        inputs=turn.inputs,
        ahead=True,
        reads_lower=True,
        speaker=turn.speaker,
    )
    stepper.forward([ahead])
    (first,) = stepper.forward([turn])
    (gradients,) = stepper.backward([(turn, {"reply": torch.ones(2, 2, 3)})])
    (again,) = stepper.backward([(turn, {"reply": torch.ones(2, 2, 3)})])
    assert [each.cost.num_cached_rows for each in (first, gradients, again)] == [2, 0, 2]
    stranger = exchange_turn(teacher, (2, 2), reading, speaker=speaker_of("stranger"))
    assert stepper.forward([stranger])[0].cost.num_cached_rows == 0


steps = st.lists(
    st.tuples(st.sampled_from(["turn", "gradients", "forget", "run"]), st.integers(0, 30), st.integers(1, 3)),
    max_size=14,
)


@settings(max_examples=25)
@given(steps, st.sampled_from([0, 6000, 1 << 30]))
def test_whatever_comes_when_every_answer_is_exact(
    drawn: list[tuple[str, int, int]], max_retained_bytes: int
) -> None:
    teacher = teacher_of("module")
    stepper = Stepper(teacher, max_retained_bytes=max_retained_bytes, max_batch_tokens=24)
    replies: list[tuple[ExchangeTurn, Future[ForwardResult]]] = []
    gradients: list[tuple[ExchangeTurn, int, Future[GradientsResult]]] = []
    for kind, number, rows in drawn:
        if kind == "turn" or not replies:
            speaker = speaker_of(TENANTS[number % 3])
            turn = exchange_turn(teacher, (rows, 2), seed=number, speaker=speaker)
            replies.append((turn, stepper.engine.forward(turn)))
            continue
        turn, _ = replies[number % len(replies)]
        if kind == "gradients":
            gradients.append((turn, number, stepper.engine.backward(turn, grad_of(turn, number))))
        elif kind == "forget":
            stepper.engine.forget(turn)
        else:
            stepper.run()
    stepper.run()
    for turn, reply in replies:
        assert_close(reply.result(0).values["reply"], alone(teacher, turn)[0])
    for turn, seed, got in gradients:
        check_gradients(teacher, turn, got.result(0), seed)
    assert stepper.graphs.num_bytes <= max_retained_bytes
