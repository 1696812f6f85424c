"""What a student waits for: the teacher's queue, its computation, or the wire.

A receipt says how long a turn was queued and computed, the student's own clock how long it was on its way.
The rest of that is the wire: network, frames, encoding at both ends. Knows no gRPC.
"""

from __future__ import annotations

import threading
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Iterator

    from preceptor.v1 import teacher_pb2 as pb

__all__ = ["Journey", "StepTimes", "WaitingClock", "WaitingTimes"]

_MS = 1000.0


@dataclass(frozen=True)
class WaitingTimes:
    """Seconds that a student was blocked, by what it was blocked by.

    Attributes:
        wire_s: network, frames and encoding; also connecting again.
        queue_s: the teacher was busy with others, or had no room.
        teacher_s: the teacher computed.
    """

    wire_s: float = 0.0
    queue_s: float = 0.0
    teacher_s: float = 0.0

    @property
    def waiting_s(self) -> float:
        """All of it."""
        return self.wire_s + self.queue_s + self.teacher_s

    def __add__(self, other: WaitingTimes) -> WaitingTimes:
        return WaitingTimes(
            self.wire_s + other.wire_s, self.queue_s + other.queue_s, self.teacher_s + other.teacher_s
        )

    def __sub__(self, other: WaitingTimes) -> WaitingTimes:
        return WaitingTimes(
            self.wire_s - other.wire_s, self.queue_s - other.queue_s, self.teacher_s - other.teacher_s
        )


@dataclass(frozen=True)
class StepTimes:
    """Where the time of steps went; the four parts add up to all of it.

    Attributes:
        num_steps: how many there were.
        step_s: seconds in all.
        waiting: those of them that were spent waiting for the teacher.
    """

    num_steps: int = 0
    step_s: float = 0.0
    waiting: WaitingTimes = WaitingTimes()

    @property
    def student_s(self) -> float:
        """Seconds of the student's own work; with several workers, of waiting for the others, too."""
        return self.step_s - self.waiting.waiting_s

    @property
    def waiting_share(self) -> float:
        """The share of the time that was spent waiting."""
        return self.waiting.waiting_s / self.step_s if self.step_s else 0.0

    def of_one(self) -> dict[str, float]:
        """Returns the mean of a step, seconds by part."""
        parts = {
            "step_s": self.step_s,
            "student_s": self.student_s,
            "wire_s": self.waiting.wire_s,
            "queue_s": self.waiting.queue_s,
            "teacher_s": self.waiting.teacher_s,
        }
        return {name: seconds / max(self.num_steps, 1) for name, seconds in parts.items()}

    def averaged(self, mean: Callable[[float], float]) -> StepTimes:
        """Returns the same of the mean worker; `mean` takes a number to its mean over workers."""
        waiting = self.waiting
        return StepTimes(
            self.num_steps,
            mean(self.step_s),
            WaitingTimes(mean(waiting.wire_s), mean(waiting.queue_s), mean(waiting.teacher_s)),
        )

    def __add__(self, other: StepTimes) -> StepTimes:
        return StepTimes(
            self.num_steps + other.num_steps, self.step_s + other.step_s, self.waiting + other.waiting
        )

    def __sub__(self, other: StepTimes) -> StepTimes:
        return StepTimes(
            self.num_steps - other.num_steps, self.step_s - other.step_s, self.waiting - other.waiting
        )


class Journey:
    """A request on its way, from the student's call to the answer.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begun_s = clock()
        self._no_room: list[tuple[float, float]] = []
        self._sent_s = 0.0
        self._answered_s = 0.0
        self._receipt: pb.Receipt | None = None

    @contextmanager
    def without_room(self) -> Iterator[None]:
        """Notes that there is no room for it at the teacher while open."""
        start_s = self._clock()
        try:
            yield
        finally:
            self._no_room.append((start_s, self._clock()))

    @asynccontextmanager
    async def room(self, places: asyncio.Semaphore) -> AsyncIterator[None]:
        """Takes one of a replica's places for turns while open."""
        with self.without_room():
            await places.acquire()
        try:
            yield
        finally:
            places.release()

    def share(self, other: Journey) -> None:
        """Notes that there was no room while there was none for another, since this one began."""
        for start_s, end_s in other._no_room:
            if end_s > self._begun_s:
                self._no_room.append((max(start_s, self._begun_s), end_s))
        self._begun_s = self._clock()

    def sent(self) -> None:
        """Notes that it leaves now; the last time counts."""
        self._sent_s = self._clock()

    def answered(self, receipt: pb.Receipt) -> None:
        """Notes that its answer has come."""
        self._answered_s = self._clock()
        self._receipt = receipt

    def split(self, start_s: float, end_s: float) -> WaitingTimes:
        """Says what some of its time was; the parts add up to all of it.

        When it was queued and computed, by the student's clock, nobody knows exactly: its way there is taken
        to be as long as the way back.
        """
        queue_s = sum(_overlap(start_s, end_s, *pause) for pause in self._no_room)
        teacher_s = 0.0
        if self._receipt is not None:
            on_its_way_s = self._answered_s - self._sent_s
            compute_s = min(self._receipt.compute_ms / _MS, on_its_way_s)
            queued_s = min(self._receipt.queue_ms / _MS, on_its_way_s - compute_s)
            arrived_s = self._sent_s + (on_its_way_s - queued_s - compute_s) / 2
            begun_s = arrived_s + queued_s
            queue_s += _overlap(start_s, end_s, arrived_s, begun_s)
            teacher_s = _overlap(start_s, end_s, begun_s, begun_s + compute_s)
        # Never below 0: what is left of rounding would show as -1e-17.
        return WaitingTimes(max(end_s - start_s - queue_s - teacher_s, 0.0), queue_s, teacher_s)


class WaitingClock:
    """Counts the time in which callers are blocked; where several are at once, it counts once.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._counting = threading.Lock()
        self._num_blocked = 0
        self._counted_s = 0.0
        self._since_s = 0.0
        self._times = WaitingTimes()

    @property
    def times(self) -> WaitingTimes:
        """What was counted so far."""
        return self._times

    @property
    def blocked_s(self) -> float:
        """Seconds since which somebody has been blocked without a break; 0 where nobody is."""
        with self._counting:
            return self._clock() - self._since_s if self._num_blocked else 0.0

    @contextmanager
    def waiting(self, journey: Journey) -> Iterator[None]:
        """Counts the time while open as waiting for a request."""
        with self._counting:
            if not self._num_blocked:
                self._since_s = self._counted_s = self._clock()
            self._num_blocked += 1
        try:
            yield
        finally:
            with self._counting:
                now_s = self._clock()
                self._times += journey.split(self._counted_s, now_s)
                self._counted_s = now_s
                self._num_blocked -= 1


def _overlap(start_s: float, end_s: float, other_start_s: float, other_end_s: float) -> float:
    return max(min(end_s, other_end_s) - max(start_s, other_start_s), 0.0)
