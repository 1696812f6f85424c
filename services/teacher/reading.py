"""How long a stream of frames is read."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from preceptor.v1 import teacher_pb2 as pb

__all__ = ["FirstFrames", "end_by"]

_FIRST_FRAME_S = 5.0
_MAX_WAITING = 8


def end_by(reading: asyncio.Timeout, at_s: float) -> None:
    """Has a reading end by a time on the loop's clock, unless it ends before or has ended."""
    when = reading.when()
    if when is None or at_s < when:
        with contextlib.suppress(RuntimeError):  # it is ending at this moment
            reading.reschedule(at_s)


class FirstFrames:
    """Reads the first frame of streams that are refused: one that ends before that fails the student's write.

    Only of some at a time; whoever opens many gets no place of ours for the asking.
    """

    def __init__(self, max_waiting: int = _MAX_WAITING) -> None:
        self._places = max_waiting

    async def read(self, request_stream: AsyncIterator[pb.ConverseRequest]) -> None:
        """Waits for a frame, a few seconds at most, or not at all."""
        if not self._places:
            return
        self._places -= 1
        try:
            async with asyncio.timeout(_FIRST_FRAME_S):
                await anext(aiter(request_stream), None)
        except TimeoutError:
            return
        finally:
            self._places += 1
