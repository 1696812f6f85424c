"""A turn that fails in a batch fails alone, whatever was computed with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from preceptor.terms import ObservationKind
from tests.toy_queue import Stepper
from tests.toy_turns import (
    alone,
    assert_close,
    check_gradients,
    codec_of,
    exchange_turn,
    grad_of,
    observe_turn,
    teacher_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.teacher.families.base import Teacher
    from services.teacher.work import ExchangeTurn


def _turns(teacher: Teacher, count: int) -> list[ExchangeTurn]:
    return [exchange_turn(teacher, (2, 2), seed=seed) for seed in range(count)]


def test_a_turn_that_fails_in_a_batch_fails_alone() -> None:
    teacher = teacher_of("encoder")
    broken = exchange_turn(teacher, (2, 2), codec=codec_of(teacher_of("module")))  # of another width
    stepper = Stepper(teacher, max_retained_bytes=0)
    mixed = [*_turns(teacher, 2), broken, *_turns(teacher, 4)[2:]]
    replies = [stepper.engine.forward(turn) for turn in mixed]
    gradients = [stepper.engine.backward(turn, grad_of(turn)) for turn in mixed]
    stepper.run()
    assert [len(batch) for batch in stepper.queue.batches] == [5, 5]
    for turn, reply, got in zip(mixed, replies, gradients, strict=True):
        if turn is broken:
            assert isinstance(reply.exception(0), RuntimeError)
            assert isinstance(got.exception(0), RuntimeError)
        else:
            assert_close(reply.result(0).values["reply"], alone(teacher, turn)[0])
            check_gradients(teacher, turn, got.result(0))


def test_a_pass_that_breaks_on_its_way_back_is_computed_again_turn_by_turn() -> None:
    teacher = teacher_of("encoder")
    stepper, turns = Stepper(teacher), _turns(teacher, 3)
    stepper.forward(turns)
    wrong = {"reply": torch.ones(1, 1, 1)}
    futures = [stepper.engine.backward(turn, wrong if turn is turns[1] else grad_of(turn)) for turn in turns]
    stepper.run()
    with pytest.raises(RuntimeError):
        futures[1].result(0)
    for index in (0, 2):
        got = futures[index].result(0)
        assert not got.retained
        check_gradients(teacher, turns[index], got)
    assert len(stepper.graphs) == 0


class _Late:
    """Transfers that deliver when they are told to, as those of a GPU do."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def deliver(
        self,
        values: Sequence[dict[str, torch.Tensor]],
        then: Callable[[list[dict[str, torch.Tensor]]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.waiting.append(lambda: then([dict(each) for each in values]))


def test_results_on_their_way_are_not_computed_again_when_others_fail() -> None:
    teacher = teacher_of("encoder")
    stepper, turns = Stepper(teacher, max_retained_bytes=0), _turns(teacher, 2)
    late = _Late()
    stepper.engine._transfers = late  # type: ignore[assignment]
    good = [stepper.engine.backward(turn, grad_of(turn)) for turn in turns]
    bad = stepper.engine.backward(turns[0], {"reply": torch.ones(1, 1, 1)})
    stepper.run()
    assert [len(batch) for batch in stepper.queue.batches] == [3]
    assert isinstance(bad.exception(0), RuntimeError)
    assert not any(future.done() for future in good)
    for deliver in late.waiting:
        deliver()
    for turn, future in zip(turns, good, strict=True):
        check_gradients(teacher, turn, future.result(0))


def test_logits_without_a_head_fail_nobody_else(headless_teacher: Teacher) -> None:
    stepper = Stepper(headless_teacher)
    good, bad = observe_turn(headless_teacher), observe_turn(headless_teacher, [ObservationKind.LOGITS])
    futures = [stepper.engine.forward(turn) for turn in (good, bad)]
    stepper.run()
    assert "lower_message" in futures[0].result(0).values
    with pytest.raises(ValueError, match="logits"):
        futures[1].result(0)
