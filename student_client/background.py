"""The one event loop of a process on which all conversations live.

PyTorch code is synchronous and calls from several threads (the autograd engine has threads of its own); gRPC
streams want one event loop. So a daemon thread runs a loop and everybody hands coroutines to it.

gRPC's threads do not survive a fork: a child of a process that had talked would hang or crash in it, so it is
told no instead. A child that was forked before, or spawned, starts a loop of its own. (Children that do not
talk are safe; see `preceptor`.)
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from student_client.errors import DeadlineExceededError, TeacherError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future

__all__ = ["result_of", "run", "submit"]

ResultT = TypeVar("ResultT")

_PATIENCE_S = 300.0

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_parent_had_talked = False


def submit(coroutine: Coroutine[Any, Any, ResultT]) -> Future[ResultT]:
    """Starts a coroutine on the process's loop.

    Raises:
        TeacherError: this process was forked from one that had talked.
    """
    if _parent_had_talked:
        coroutine.close()
        raise TeacherError(
            "got a process that was forked after its parent had talked to a teacher, expected one that was "
            "spawned, or forked before"
        )
    return asyncio.run_coroutine_threadsafe(coroutine, _running_loop())


def run(
    coroutine: Coroutine[Any, Any, ResultT], what: str = "what runs there", timeout_s: float = _PATIENCE_S
) -> ResultT:
    """Runs a coroutine on the process's loop and waits for it; arguments and errors as in `result_of`."""
    return result_of(submit(coroutine), what, timeout_s)


def result_of(future: Future[ResultT], what: str, timeout_s: float) -> ResultT:
    """Waits for what was submitted, which has a deadline of its own; not to be called from the loop.

    Args:
        future: as `submit` returned it.
        what: is waited for, for the message.
        timeout_s: longer than it takes, unless the loop's thread hangs or is gone.

    Raises:
        DeadlineExceededError: nothing came.
    """
    try:
        return future.result(timeout_s)
    except TimeoutError:
        if not future.cancel():  # it has ended: with an error of its own, or just now
            return future.result(timeout_s)
        raise DeadlineExceededError(
            f"{what}: nothing came of it within {timeout_s:g} s; the conversations' thread hangs"
        ) from None


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop  # noqa: PLW0603 - one loop a process is the point
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="preceptor-client", daemon=True).start()
        return _loop


def _forget_loop() -> None:
    """Makes a forked child, where the loop's thread does not run, start anew or not at all."""
    global _loop, _lock, _parent_had_talked  # noqa: PLW0603 - see above
    _parent_had_talked = _parent_had_talked or _loop is not None
    _loop, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_loop)
