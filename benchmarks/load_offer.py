"""Offers turns to a teacher and counts what came of them: in a closed loop, or at times of their own."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from preceptor.v1 import teacher_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.load_line import Line, TurnKind

__all__ = ["Offer", "Tally", "closed_loop", "due_times"]

_ANSWERS: dict[TurnKind, str] = {"exchange": "reply", "backward": "gradients"}
# As the client does it (see `student_client.backoff`): who was refused together does not come back together.
_LONGEST_RETRY = 1.5


@dataclass
class Tally:
    """What came of a tenant's turns. A turn that is sent again, after a refusal, counts again.

    Attributes:
        due: pairs whose time had come.
        deferred: pairs among them that could not begin then.
        not_begun: pairs among them that had not begun at the end.
        done: pairs that have their gradients.
        retained: pairs among them whose graph was still there.
        sent: turns.
        answered: turns among them that got their reply or gradients.
        refused: turns among them for which there was no room.
        refused_with_retry_after: turns among those that were told when to come back.
        failed: turns among them that got another answer, and which.
        turns_s: from when a turn was first due until it was answered, in seconds.
        accepted_s: from when it was sent for the last time until it was answered, in seconds.
        pairs_s: from when a pair was due until it was done, in seconds.
    """

    due: int = 0
    deferred: int = 0
    not_begun: int = 0
    done: int = 0
    retained: int = 0
    sent: int = 0
    answered: int = 0
    refused: int = 0
    refused_with_retry_after: int = 0
    failed: list[str] = field(default_factory=list)
    turns_s: list[float] = field(default_factory=list)
    accepted_s: list[float] = field(default_factory=list)
    pairs_s: list[float] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """Turns that were not turned away: each of them must have been answered."""
        return self.sent - self.refused - len(self.failed)

    def take(self, kind: TurnKind, answer: pb.ConverseResponse | None) -> float | None:
        """Counts what a turn got; returns in how many seconds to come back with it, 0 if not at all.

        Returns:
            None if it was answered.
        """
        self.sent += 1
        if answer is None:
            return 0.0
        if answer.HasField("failed") and answer.failed.reason == pb.REASON_OVERLOADED:
            self.refused += 1
            self.refused_with_retry_after += answer.failed.retry_after_ms > 0
            return answer.failed.retry_after_ms / 1000
        if answer.WhichOneof("frame") == _ANSWERS[kind]:
            self.answered += 1
            self.retained += answer.gradients.receipt.graph_source == pb.GRAPH_SOURCE_RETAINED
            return None
        self.failed.append(f"{kind}: {str(answer)[:200]}")
        return 0.0

    def add(self, other: Tally) -> None:
        """Adds what another counted."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def due_times(pairs_per_s: float, seconds: float, seed: int) -> list[float]:
    """Returns when pairs are due, in seconds from the start: a Poisson process."""
    numbers = random.Random(seed)
    times, now_s = list[float](), numbers.expovariate(pairs_per_s)
    while now_s < seconds:
        times.append(now_s)
        now_s += numbers.expovariate(pairs_per_s)
    return times


class Offer:
    """One conversation in an open loop.

    A pair has a place from its beginning until its gradients are there or it is given up, also while it waits
    to come back. There are as many places as the teacher lets turns be in flight.

    Args:
        line: an open conversation.
        tally: counts.
        start_s: of the run, on the loop's clock.
        end_s: after it no pair begins and no turn comes back; gradients of replies are still asked for.
        seed: of the jitter.
    """

    def __init__(self, line: Line, tally: Tally, start_s: float, end_s: float, seed: int) -> None:
        self._line = line
        self._tally = tally
        self._start_s = start_s
        self._end_s = end_s
        self._numbers = random.Random(seed)
        self._places = asyncio.Semaphore(line.limits.max_turns_in_flight)
        self._clock = asyncio.get_running_loop().time

    async def run(self, times: Sequence[float]) -> None:
        """Begins a pair at each of the times, or once it has a place, and waits for all answers."""
        self._tally.due += len(times)
        num_begun, free_s = 0, self._start_s
        async with asyncio.TaskGroup() as group:
            for time_s in times:
                due_s = self._start_s + time_s
                await self._sleep_until(due_s)
                is_full = self._places.locked()
                self._tally.deferred += is_full or free_s > due_s
                try:
                    async with asyncio.timeout_at(self._end_s):
                        await self._places.acquire()
                except TimeoutError:
                    break
                if is_full:
                    free_s = self._clock()
                num_begun += 1
                group.create_task(self._pair(due_s))
        self._tally.not_begun += len(times) - num_begun

    async def _pair(self, due_s: float) -> None:
        number = next(self._line.numbers)
        try:
            if await self._turn("exchange", number, due_s) and await self._turn(
                "backward", number, self._clock()
            ):
                self._tally.done += 1
                self._tally.pairs_s.append(self._clock() - due_s)
        finally:
            self._places.release()

    async def _turn(self, kind: TurnKind, number: int, due_s: float) -> bool:
        """Offers a turn until it is answered; False if it is given up."""
        while not self._line.is_lost:
            sent_s = self._clock()
            answer = await self._line.ask(kind, number)
            retry_after_s = self._tally.take(kind, answer)
            if retry_after_s is None:
                self._tally.turns_s.append(self._clock() - due_s)
                self._tally.accepted_s.append(self._clock() - sent_s)
                return True
            back_s = self._clock() + retry_after_s * self._numbers.uniform(1.0, _LONGEST_RETRY)
            if not retry_after_s or back_s > self._end_s:
                return False
            await self._sleep_until(back_s)
        return False

    async def _sleep_until(self, time_s: float) -> None:
        await asyncio.sleep(max(time_s - self._clock(), 0.0))


async def closed_loop(lines: Sequence[Line], seconds: float) -> float:
    """Lets each conversation do pair after pair for a time, one at a time; returns pairs a second of all.

    Raises:
        RuntimeError: a turn was refused or lost.
    """
    clock = asyncio.get_running_loop().time
    start_s = clock()

    async def talk(line: Line) -> int:
        num_pairs, tally = 0, Tally()
        while not num_pairs or clock() < start_s + seconds:
            number = next(line.numbers)
            for kind, expected in _ANSWERS.items():
                answer = await line.ask(kind, number)
                if tally.take(kind, answer) is not None:
                    raise RuntimeError(f"closed loop: got {answer}, expected {expected}")
            num_pairs += 1
        return num_pairs

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(talk(line)) for line in lines]
    return sum(task.result() for task in tasks) / (clock() - start_s)
