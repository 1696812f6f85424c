"""How fast a run goes, and where the time of its steps goes."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from student_client.times import StepTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from student_client.times import WaitingTimes

__all__ = ["Pace"]


class Pace:
    """Counts the time and the examples of steps.

    Args:
        waiting: says how many seconds have been spent waiting for the teacher, ever.
        clock: seconds that only grow, as those of `waiting`.
        mean: takes a number to its mean over all workers, which have to ask for the same at the same time.

    Attributes:
        total: where the time of all steps went, in this worker.
    """

    def __init__(
        self,
        waiting: Callable[[], WaitingTimes],
        clock: Callable[[], float] = time.perf_counter,
        mean: Callable[[float], float] = lambda number: number,
    ) -> None:
        self.total = StepTimes()
        self._waiting = waiting
        self._clock = clock
        self._mean = mean
        self._num_examples = 0
        self._epoch = self._lap = (self.total, 0)

    @contextmanager
    def step(self, num_examples: int) -> Iterator[None]:
        """Counts what is done while open as a step with so many examples."""
        start_s, waited = self._clock(), self._waiting()
        yield
        self.total += StepTimes(1, self._clock() - start_s, self._waiting() - waited)
        self._num_examples += num_examples

    def start_epoch(self) -> None:
        """Lets an epoch begin."""
        self._epoch = self._lap = (self.total, self._num_examples)

    @property
    def waiting_share(self) -> float:
        """The share of the time of this worker's steps that was spent waiting."""
        return self.total.waiting_share

    def all_steps(self) -> StepTimes:
        """Returns where the time of all steps went, in the mean worker."""
        return self.total.averaged(self._mean)

    def epoch(self) -> StepTimes:
        """Returns the same of the present epoch's steps."""
        return (self.total - self._epoch[0]).averaged(self._mean)

    def lap(self) -> tuple[float, StepTimes]:
        """Returns the same since the last lap or start of an epoch, after the examples a second."""
        now, last = (self.total, self._num_examples), self._lap
        self._lap = now
        times = (now[0] - last[0]).averaged(self._mean)
        return (now[1] - last[1]) / times.step_s if times.step_s else 0.0, times
