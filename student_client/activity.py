"""What a process is doing that takes a while, for people who watch."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Activity"]


class Activity:
    """What is being done now, in words; safe to use from several threads."""

    def __init__(self) -> None:
        self._open: list[tuple[str, float]] = []

    @contextmanager
    def now(self, text: str) -> Iterator[None]:
        """Says that something is being done while open."""
        entry = (text, time.monotonic())
        self._open.append(entry)
        try:
            yield
        finally:
            self._open.remove(entry)

    @property
    def latest(self) -> tuple[str, float]:
        """What was begun last and has not ended, and for how many seconds it has gone on; else no text."""
        entries = self._open[-1:]
        if not entries:
            return "", 0.0
        ((text, start_s),) = entries
        return text, time.monotonic() - start_s
