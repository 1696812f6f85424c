"""How long a stream of frames is read."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from preceptor.v1 import teacher_pb2 as pb

__all__ = ["end_by", "read_first"]

_FIRST_FRAME_S = 5.0


def end_by(reading: asyncio.Timeout, at_s: float) -> None:
    """Has a reading end by a time on the loop's clock, unless it ends before or has ended."""
    when = reading.when()
    if when is None or at_s < when:
        with contextlib.suppress(RuntimeError):  # it is ending at this moment
            reading.reschedule(at_s)


async def read_first(request_stream: AsyncIterator[pb.ConverseRequest]) -> None:
    """Reads a frame: a stream that ends before that fails the student's write, not the opening."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_FRAME_S):
            await anext(aiter(request_stream), None)
