"""Ends a benchmark that waits where it should not, with all that it started."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ended_after"]


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Ends this process and its children, with exit status 1, if this is still open after so many seconds."""
    watchdog = threading.Timer(seconds, _give_up, [seconds])
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def _give_up(seconds: float) -> None:
    print(f"{seconds:g} s are over and something still waits", file=sys.stderr, flush=True)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()
    os._exit(1)
