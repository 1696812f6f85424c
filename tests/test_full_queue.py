"""A full queue refuses new turns, not what frees memory."""

from __future__ import annotations

import gc

import pytest

from services.teacher.errors import OverloadedError
from services.teacher.work import ForwardWork
from tests.toy_queue import IdleTeacher


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
def test_a_full_queue_takes_the_first_gradients_of_a_turn_that_was_served(*, keep: bool) -> None:
    teacher = IdleTeacher(max_queued_tokens=50)
    turn = teacher.turn("a")
    teacher.come(turn)
    teacher.compute(keep=keep)
    teacher.come(teacher.turn("a", 50, "another"))
    teacher.come(teacher.gradients(turn))
    with pytest.raises(OverloadedError):
        teacher.come(teacher.gradients(turn))
    with pytest.raises(OverloadedError):
        teacher.come(teacher.turn("a"))
    assert teacher.queue.num_queued_tokens == 60


def test_gradients_of_a_turn_that_was_served_again_get_in_again() -> None:
    teacher = IdleTeacher(max_queued_tokens=50)
    turn = teacher.turn("a")
    for _ in range(2):
        teacher.come(ForwardWork(turn.turn, 0.0))
        teacher.compute()
        teacher.come(teacher.turn("a", 50, "another"))
        teacher.come(teacher.gradients(turn))
        while teacher.compute():
            pass


def test_nothing_is_remembered_of_a_turn_that_its_conversation_dropped() -> None:
    teacher = IdleTeacher(max_queued_tokens=50)
    teacher.come(teacher.turn("a"))
    teacher.compute(keep=False)
    teacher.queue.batches.clear()
    gc.collect()
    assert len(teacher.queue._owed) == 0


def test_a_tenants_own_limit_holds_while_the_queue_has_room_for_others() -> None:
    limits = {"a": 15}
    teacher = IdleTeacher(max_queued_by_tenant=limits)
    served = teacher.turn("a", 20)
    teacher.come(served)  # nothing of it waits: a turn of any size gets in
    teacher.compute()
    teacher.come(teacher.turn("a"))
    with pytest.raises(OverloadedError, match="got 10 tokens of a more than 10, expected at most 15"):
        teacher.come(teacher.turn("a"))
    teacher.come(teacher.turn("b", 40))
    teacher.come(teacher.gradients(served))
    limits["a"] = 50
    teacher.come(teacher.turn("a"))
