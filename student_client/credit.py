"""What may be sent on one stream: every frame costs its bytes, and the replica gives them back.

So what a replica holds of a student is bounded, whatever buffers lie between them. Lives on one event loop;
knows no gRPC.
"""

from __future__ import annotations

import asyncio
from collections import deque

from student_client.errors import FrameTooLargeError

__all__ = ["Credit"]


class Credit:
    """Bytes that may be sent, none until it is opened. Frames are paid for in the order they ask."""

    def __init__(self) -> None:
        self._num_bytes = 0
        self._most_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._closed_by: Exception | None = None

    def open(self, num_bytes: int) -> None:
        """Grants the first bytes; there will never be more of them at once."""
        self._most_bytes = num_bytes
        self.grant(num_bytes)

    def grant(self, num_bytes: int) -> None:
        """Adds bytes and lets those go on who waited for them."""
        self._num_bytes += num_bytes
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._num_bytes):
            cost, future = self._waiting.popleft()
            if not future.done():  # who was cancelled may not know it yet
                self._num_bytes -= cost
                future.set_result(None)

    def covers(self, num_bytes: int) -> bool:
        """Whether so many bytes may be sent at once, before anybody who waits."""
        return not self._waiting and num_bytes <= self._num_bytes

    async def spend(self, num_bytes: int) -> None:
        """Waits until so many bytes may be sent, and takes them.

        Raises:
            FrameTooLargeError: there will never be so many.
            Exception: the one that `close` was given.
        """
        if self._closed_by is not None:
            raise self._closed_by
        if num_bytes > self._most_bytes:
            raise FrameTooLargeError(
                f"frame: got {num_bytes} bytes, expected at most {self._most_bytes}, all the credit that the "
                "teacher gives; send fewer rows a turn"
            )
        if self.covers(num_bytes):
            self._num_bytes -= num_bytes
            return
        entry = (num_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            await entry[1]
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self.grant(0)  # who stood behind may be satisfied with less
            elif not entry[1].cancelled() and entry[1].exception() is None:
                self.grant(num_bytes)  # taken, and not used
            raise

    def close(self, error: Exception) -> None:
        """Tells everybody who waits, and whoever asks from now on, that nothing can be sent any more."""
        self._closed_by = error
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)
