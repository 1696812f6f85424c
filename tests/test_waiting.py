"""An idle teacher waits for those who are about to come back, and for nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.toy_queue import PASS_S, IdleTeacher


def test_an_idle_teacher_waits_for_conversations_that_are_about_to_come_back() -> None:
    teacher = IdleTeacher()
    for _ in range(30):
        teacher.step("abc")
    start_s = teacher.clock()
    teacher.come(teacher.turn("a"))
    batch = teacher.queue.next_batch()
    assert batch is not None
    assert len(batch) == 1
    assert 0 < teacher.clock() - start_s <= PASS_S


def test_once_most_are_there_nobody_waits() -> None:
    teacher = IdleTeacher()
    for _ in range(30):
        teacher.step("abc")
    now_s = teacher.clock()
    teacher.come(teacher.turn("a"), teacher.turn("b"))
    assert len(teacher.queue.next_batch() or []) == 2
    assert teacher.clock() == now_s


@pytest.mark.parametrize("settings", [{"max_wait_s": 0.0}, {"max_batch_tokens": 10}])
def test_where_waiting_is_worth_nothing_nobody_waits(settings: dict[str, Any]) -> None:
    teacher = IdleTeacher(**settings)
    for _ in range(30):
        teacher.step("abc")
    now_s = teacher.clock()
    teacher.come(teacher.turn("a"))
    assert len(teacher.queue.next_batch() or []) == 1
    assert teacher.clock() == now_s


def test_conversations_that_are_gone_are_not_waited_for() -> None:
    teacher = IdleTeacher()
    for _ in range(30):
        teacher.step("abc")
    for tenant in "bc":
        teacher.queue.gone(tenant)
    now_s = teacher.clock()
    teacher.come(teacher.turn("a"))
    assert len(teacher.queue.next_batch() or []) == 1
    assert teacher.clock() == now_s


def test_a_deterministic_conversation_waits_for_nobody_and_nobody_for_it() -> None:
    teacher = IdleTeacher(deterministic="d")
    for _ in range(30):
        teacher.step("abc")
    now_s = teacher.clock()
    teacher.come(teacher.turn("d"))  # a, b and c are about to come, and are of no use to it
    assert len(teacher.queue.next_batch() or []) == 1
    assert teacher.clock() == now_s
    alone = IdleTeacher(deterministic="d")
    for _ in range(30):
        alone.step("d")
    assert alone.queue._rhythm.expected_tenants(alone.clock(), PASS_S) == set()


def test_a_team_of_many_conversations_has_whole_passes() -> None:
    teacher = IdleTeacher(max_batch_tokens=100)
    conversations = [f"team-{number}" for number in range(20)]
    for _ in range(5):
        turns = [teacher.turn("team", 10, name) for name in conversations]
        teacher.come(*turns)
        while teacher.compute():
            pass
    teacher.come(*(teacher.turn("team", 10, name) for name in conversations[:10]))
    assert len(teacher.queue.next_batch() or []) == 10


def test_a_heavy_tenant_leaves_room_for_those_who_are_about_to_come() -> None:
    teacher = IdleTeacher(max_batch_tokens=100)
    for _ in range(30):
        teacher.step("abc")
    teacher.come(*(teacher.turn("heavy", 10, f"heavy-{number}") for number in range(40)))
    assert len(teacher.queue.next_batch() or []) < 10
