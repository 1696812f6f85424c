"""How fast a run goes, and which share of its steps it spends waiting for the teacher."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Pace"]


class Pace:
    """Counts the time and the examples of steps.

    Args:
        waiting_s: says how many seconds have been spent waiting for the teacher, ever.
        clock: seconds that only grow.

    Attributes:
        stepped_s: seconds in steps, ever.
    """

    def __init__(
        self, waiting_s: Callable[[], float], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.stepped_s = 0.0
        self._waiting_s = waiting_s
        self._clock = clock
        self._num_examples = 0
        self._epoch = self._lap = (0.0, 0.0, 0)

    @contextmanager
    def step(self, num_examples: int) -> Iterator[None]:
        """Counts what is done while open as a step with so many examples."""
        start_s = self._clock()
        yield
        self.stepped_s += self._clock() - start_s
        self._num_examples += num_examples

    def start_epoch(self) -> None:
        """Lets an epoch begin."""
        self._epoch = self._lap = self._now()

    @property
    def waiting_share(self) -> float:
        """The share of the time of all steps that was spent waiting."""
        return _share(self._waiting_s(), self.stepped_s)

    @property
    def epoch_waiting_share(self) -> float:
        """The same of the present epoch's steps."""
        waiting_s, stepped_s, _ = self._now()
        return _share(waiting_s - self._epoch[0], stepped_s - self._epoch[1])

    def lap(self) -> tuple[float, float]:
        """Returns the examples a second and the share of waiting since the last lap or start of an epoch."""
        now, last = self._now(), self._lap
        self._lap = now
        seconds = now[1] - last[1]
        return _share(now[2] - last[2], seconds), _share(now[0] - last[0], seconds)

    def _now(self) -> tuple[float, float, int]:
        return self._waiting_s(), self.stepped_s, self._num_examples


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
