"""The console's answers, made once for all who ask the same at about the same time.

An answer with ten minutes of history takes longer to write down than to find, so that is done on a thread,
one at a time, and the directory's event loop stays free for students.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf import json_format

from services.teacher.history import HISTORY_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from preceptor.v1 import status_pb2
    from services.teacher.console_app import StatusSource
    from services.teacher.gate import Pass

__all__ = ["Answers"]

_MAX_AGE_S = 0.5
_MAX_KEPT = 64
_QUICK = 1  # gzip's level: JSON shrinks to a tenth anyway
_STEP_S = 10
_FEW_S = 60  # who asks for more gets all that there is


@dataclass
class _Answer:
    made_s: float
    text: asyncio.Future[bytes]

    def is_good(self, now_s: float) -> bool:
        """Whether it is not old; one that is still being written is as new as any."""
        return not self.text.done() or now_s - self.made_s <= _MAX_AGE_S


class Answers:
    """Answers with JSON.

    Args:
        source: of what is told.
        clock: seconds that only go forward.
    """

    def __init__(self, source: StatusSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._answers: OrderedDict[tuple[Pass | None, int, bool], _Answer] = OrderedDict()
        self._writing = asyncio.Lock()

    async def answer(self, shown: Pass | None, history_s: int, *, packed: bool) -> bytes:
        """Returns what a caller who was let in sees; at most half a second old.

        Args:
            shown: what it was let in with.
            history_s: seconds of samples that it wants; it may get some more.
            packed: whether it takes gzip.
        """
        steps_s = -(-history_s // _STEP_S) * _STEP_S
        key = shown, steps_s if steps_s <= _FEW_S else int(HISTORY_S), packed
        answer = self._answers.get(key)
        if answer is None or not answer.is_good(self._clock()):
            # A task of its own: who asked first may go away before it is done.
            answer = self._answers[key] = _Answer(self._clock(), asyncio.ensure_future(self._write(*key)))
            self._answers.move_to_end(key)
            self._forget()
        return await asyncio.shield(answer.text)

    def _forget(self) -> None:
        """Drops the oldest; not those that somebody waits for, which would be written twice."""
        num_over = len(self._answers) - _MAX_KEPT
        over = [key for key, each in self._answers.items() if each.text.done()][: max(num_over, 0)]
        for key in over:
            del self._answers[key]

    async def _write(self, shown: Pass | None, history_s: int, packed: bool) -> bytes:  # noqa: FBT001
        async with self._writing:
            return await asyncio.to_thread(_json_of, self._source.answer(shown, history_s), packed=packed)


def _json_of(status: status_pb2.GetStatusResponse, *, packed: bool) -> bytes:
    text = json_format.MessageToJson(status, preserving_proto_field_name=True, indent=None).encode()
    return gzip.compress(text, _QUICK) if packed else text
