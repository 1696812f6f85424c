"""The simplest queue of an engine: what sharing is measured against."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from services.teacher.errors import OverloadedError

if TYPE_CHECKING:
    from services.teacher.work import Work

__all__ = ["FifoQueue"]


class FifoQueue:
    """First come, first served, one piece of work at a time; a `WorkQueue`."""

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._queue: deque[Work] = deque()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def num_queued_tokens(self) -> int:
        """Rows x positions that wait."""
        return sum(work.turn.num_tokens for work in list(self._queue))

    def admit(self, work: Work) -> None:
        """Appends work; raises OverloadedError when `max_queued` pieces wait."""
        with self._changed:
            if len(self._queue) >= self._max_queued or self._closed:
                raise OverloadedError(
                    f"the teacher's queue: got one more turn, expected at most {self._max_queued}", 0.1
                )
            self._queue.append(work)
            self._changed.notify()

    def next_batch(self) -> list[Work] | None:
        """Waits for the oldest piece of work."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return [self._queue.popleft()] if self._queue else None

    def finished(self, batch: list[Work], seconds: float) -> None:
        """Has nothing to learn."""

    def gone(self, conversation: str) -> None:
        """Has nothing to forget."""

    def close(self) -> None:
        """Lets `next_batch` return None once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
