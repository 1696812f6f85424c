"""The answers of one conversation on their way to the stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from preceptor.v1 import teacher_pb2 as pb

__all__ = ["Outbox"]


class Outbox:
    """A queue whose writers never wait but whose feeder can: who does not read is not read either.

    Args:
        max_waiting: answers beyond which `room` waits.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._answers: asyncio.Queue[pb.ConverseResponse | None] = asyncio.Queue()
        self._offered_s: float | None = None
        self._has_room = asyncio.Event()
        self._has_room.set()

    def put(self, answer: pb.ConverseResponse | None) -> None:
        """Appends an answer; None ends the stream."""
        self._answers.put_nowait(answer)
        if self._answers.qsize() > self._max_waiting:
            self._has_room.clear()

    async def room(self) -> None:
        """Waits until at most `max_waiting` answers wait to be taken."""
        await self._has_room.wait()

    def unread_s(self, now_s: float) -> float:
        """Returns for how long, on the loop's clock, the student has not taken what it is being sent."""
        return 0.0 if self._offered_s is None else now_s - self._offered_s

    async def answers(self) -> AsyncIterator[pb.ConverseResponse]:
        """Yields answers until the stream's end."""
        while (answer := await self._answers.get()) is not None:
            if self._answers.qsize() <= self._max_waiting:
                self._has_room.set()
            self._offered_s = asyncio.get_running_loop().time()
            yield answer
            self._offered_s = None
