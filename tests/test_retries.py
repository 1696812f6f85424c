"""When refused turns are told to come back."""

from __future__ import annotations

import pytest

from services.teacher.errors import OverloadedError
from services.teacher.retries import RetryLines
from tests.toy_queue import PASS_S, IdleTeacher


def test_those_who_are_refused_come_back_one_after_another() -> None:
    lines = RetryLines()
    assert [lines.next_s("a", 100.0, 2.0, 0.5) for _ in range(3)] == [1.0, 1.5, 2.0]
    assert lines.next_s("b", 100.0, 2.0, 0.5) == 1.0  # another's line is not longer for it
    assert lines.next_s("a", 103.0, 2.0, 0.5) == 1.0  # all of them had their turn


def test_nobody_is_sent_away_for_good() -> None:
    lines = RetryLines()
    waits = [lines.next_s("a", 100.0, 2.0, 10.0) for _ in range(100)]
    assert max(waits) == 30.0
    assert lines.next_s("a", 130.0, 2.0, 10.0) <= 30.0
    assert lines.next_s("a", 1000.0, 0.0, 10.0) == 0.05


def test_lines_that_are_over_are_forgotten() -> None:
    lines = RetryLines()
    for number in range(5000):
        lines.next_s(f"tenant-{number}", 100.0, 2.0, 0.5)
    lines.next_s("late", 200.0, 2.0, 0.5)
    assert len(lines._next_s) == 1


def test_a_tenants_line_is_as_fast_as_its_share() -> None:
    teacher = IdleTeacher(max_queued_tokens=100, weights={"rich": 3.0})
    teacher.step("a")  # the rate is known
    teacher.come(teacher.turn("rich", 100), teacher.turn("poor", 25))
    steps = {}
    for tenant in ("rich", "poor"):
        waits = []
        for _ in range(2):
            with pytest.raises(OverloadedError) as caught:
                teacher.come(teacher.turn(tenant, 50))
            waits.append(caught.value.retry_after_s)
        steps[tenant] = waits[1] - waits[0]
    assert steps["poor"] == pytest.approx(3 * steps["rich"])


def test_the_first_pass_tells_the_rate() -> None:
    teacher = IdleTeacher(max_queued_tokens=1000)
    teacher.come(teacher.turn("a", 100))
    teacher.compute()
    assert teacher.queue._tokens_per_s == pytest.approx(100 / PASS_S)
    assert teacher.queue._pass_s == pytest.approx(PASS_S)
