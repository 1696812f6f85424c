"""What a process is doing that takes a while, for people who watch.

A training run's workers leave word of it in files of the run's folder, since they may be anywhere.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ["Activity", "forget_activities", "longest_activity", "told_in"]

ItemT = TypeVar("ItemT")

_PERIOD_S = 0.25
_LONG_S = 1.0  # what takes less is not told
_FILES = "doing-*.json"


class Activity:
    """What is being done now, in words; safe to use from several threads.

    Args:
        otherwise: says the same, as `latest` does, of what is not told here.
        lingers_s: what has just ended is told for so long; it may begin again.
    """

    def __init__(
        self, otherwise: Callable[[], tuple[str, float]] = lambda: ("", 0.0), lingers_s: float = 0.0
    ) -> None:
        self.otherwise = otherwise
        self._lingers_s = lingers_s
        self._open: list[tuple[str, float]] = []
        self._ended = ("", 0.0, 0.0)

    @contextmanager
    def now(self, text: str) -> Iterator[None]:
        """Says that something is being done while open."""
        entry = (text, time.monotonic())
        self._open.append(entry)
        try:
            yield
        finally:
            self._open.remove(entry)
            self._ended = (*entry, time.monotonic())

    def over(self, text: str, items: Iterable[ItemT]) -> Iterator[ItemT]:
        """Yields the items; says that something is being done while the next one is waited for."""
        iterator = iter(items)
        while True:
            with self.now(text):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @property
    def latest(self) -> tuple[str, float]:
        """What was begun last and has not ended, and for how many seconds it has gone on; else no text."""
        now_s, entries = time.monotonic(), self._open[-1:]
        for text, start_s in entries:
            return text, now_s - start_s
        text, start_s, end_s = self._ended
        return (text, now_s - start_s) if now_s - end_s < self._lingers_s else self.otherwise()


@contextmanager
def told_in(folder: Path, rank: int, latest: Callable[[], tuple[str, float]]) -> Iterator[None]:
    """Keeps a file about what a worker does, while open and while that takes long.

    Args:
        folder: of the run.
        rank: the worker's number.
        latest: says what it does and for how many seconds already; no text: it gets on.
    """
    path, is_over = folder / f"doing-{rank}.json", threading.Event()

    def tell() -> None:
        told = ""
        while not is_over.wait(_PERIOD_S):
            text, seconds = latest()
            if seconds < _LONG_S:
                text = ""
            if text != told:
                told = text
                _put(path, {"worker": rank, "text": text, "since_s": time.time() - seconds})

    thread = threading.Thread(target=tell, name="activity", daemon=True)
    _put(path, None)  # of a worker that was killed
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        _put(path, None)


def longest_activity(folder: Path) -> dict[str, Any] | None:
    """Returns what a run's worker does for the longest time: its "text", "worker" and "since_s"."""
    found = []
    for path in folder.glob(_FILES):
        with contextlib.suppress(OSError, ValueError):  # it may just have gone
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["text"]:
                found.append(content)
    return min(found, key=lambda each: each["since_s"], default=None)


def forget_activities(folder: Path) -> None:
    """Deletes what workers said that were killed."""
    for path in folder.glob(_FILES):
        _put(path, None)


def _put(path: Path, content: dict[str, Any] | None) -> None:
    """Replaces a file, or deletes it; nothing depends on it, so a full disk disturbs nobody."""
    with contextlib.suppress(OSError):
        if content is None or not content["text"]:
            path.unlink(missing_ok=True)
            return
        aside = path.with_suffix(".aside")
        aside.write_text(json.dumps(content), encoding="utf-8")
        aside.replace(path)
