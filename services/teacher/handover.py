"""Hands calls over from the compute thread to an event loop, many at a time.

`loop.call_soon_threadsafe` wakes the loop by a system call each time, and the thread that wakes it loses the
interpreter's lock to it. A pass for sixteen tenants has sixteen results; one wake-up is enough for them.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Handover"]


class Handover:
    """Calls on their way to one loop; `to` returns the one of a loop."""

    _of_loops: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Handover]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._calls: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @classmethod
    def to(cls, loop: asyncio.AbstractEventLoop) -> Handover:
        """Returns what hands over to a loop; called on that loop."""
        return cls._of_loops.setdefault(loop, cls(loop))

    def call(self, function: Callable[[], None]) -> None:
        """Has a function called on the loop, soon; from any thread. Dropped if the loop is closed."""
        with self._lock:
            self._calls.append(function)
            is_awake = len(self._calls) > 1
        loop = self._loop()
        if not is_awake and loop is not None:
            with contextlib.suppress(RuntimeError):  # closed: the server is gone, nobody waits
                loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, []
        for function in calls:
            function()
