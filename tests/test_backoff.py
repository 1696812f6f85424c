"""How long a student pauses before it tries again; the clock is the test's."""

from __future__ import annotations

import asyncio

import pytest

from student_client import TeacherUnavailableError
from student_client.backoff import Backoff

GONE = TeacherUnavailableError("gone")


class _Time:
    """A clock that only sleeping moves; jitter is drawn at `draw` of its range."""

    def __init__(self, draw: float) -> None:
        self.now_s = 0.0
        self.pauses_s: list[float] = []
        self._draw = draw

    def backoff(self, deadline_s: float = 100.0) -> Backoff:
        return Backoff(
            0.1,
            1.0,
            deadline_s,
            clock=lambda: self.now_s,
            sleep=self._sleep,
            uniform=lambda low, high: low + self._draw * (high - low),
        )

    async def _sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.now_s += seconds


async def _pause(backoff: Backoff, *retries_after_s: float) -> None:
    for retry_after_s in retries_after_s:
        await backoff.pause(GONE, retry_after_s)


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.5), (1.0, 1.0)])
def test_pauses_double_up_to_the_longest_with_jitter(draw: float, factor: float) -> None:
    time = _Time(draw)
    asyncio.run(_pause(time.backoff(), *[0.0] * 6))
    assert time.pauses_s == pytest.approx([factor * each for each in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0)])


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 1.0), (0.5, 1.25), (1.0, 1.5)])
def test_a_teacher_that_says_when_is_never_asked_sooner(draw: float, factor: float) -> None:
    time = _Time(draw)
    asyncio.run(_pause(time.backoff(), 0.05, 3.0))
    assert time.pauses_s == pytest.approx([0.05 * factor, 3.0 * factor])


def test_refusals_that_say_when_do_not_lengthen_other_pauses() -> None:
    time = _Time(1.0)
    asyncio.run(_pause(time.backoff(), 2.0, 0.0, 0.0, 0.0))
    assert time.pauses_s == pytest.approx([3.0, 0.1, 0.2, 0.4])


def test_the_problem_is_raised_once_the_deadline_would_pass() -> None:
    time = _Time(1.0)
    backoff = time.backoff(deadline_s=0.25)
    with pytest.raises(TeacherUnavailableError, match="gone"):
        asyncio.run(_pause(backoff, 0.0, 0.0))
    assert time.pauses_s == pytest.approx([0.1])


def test_students_that_were_refused_together_come_back_apart() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    for _ in range(20):
        backoff = Backoff(0.1, 1.0, float("inf"), sleep=sleep)
        asyncio.run(_pause(backoff, 1.0))
    assert len(set(slept)) == 20
    assert min(slept) >= 1.0
    assert max(slept) <= 1.5
