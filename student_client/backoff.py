"""How long to pause between the attempts at one thing, and when to give up."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from student_client.errors import TeacherError

__all__ = ["Backoff"]

# Its own generator: what the network does must not change the random numbers of the training loop.
_random = random.Random()


class Backoff:
    """Pauses that double, with jitter, or as long as the teacher asks for.

    Args:
        first_s: the first pause.
        max_s: the longest one, except where the teacher asks for more.
        deadline_s: when to give up, on `clock`.
        clock: seconds that only grow.
        sleep: waits for so many seconds.
        uniform: draws the jitter between two numbers.
    """

    def __init__(
        self,
        first_s: float,
        max_s: float,
        deadline_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = _random.uniform,
    ) -> None:
        self._pause_s = min(first_s, max_s)
        self._max_s = max_s
        self._deadline_s = deadline_s
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform

    async def pause(self, problem: TeacherError, retry_after_s: float = 0.0) -> None:
        """Waits before the next attempt.

        A teacher without room says when to come back: never sooner than that, and up to half as much later,
        so that those who were refused together do not come back together.

        Args:
            problem: what came of the last attempt.
            retry_after_s: what the teacher asked for; 0 if it did not.

        Raises:
            TeacherError: `problem`, if the deadline comes first.
        """
        if retry_after_s > 0:
            wait_s = retry_after_s * self._uniform(1.0, 1.5)
        else:
            wait_s = self._pause_s * self._uniform(0.5, 1.0)
            self._pause_s = min(self._pause_s * 2, self._max_s)
        if self._clock() + wait_s > self._deadline_s:
            raise problem
        await self._sleep(wait_s)
