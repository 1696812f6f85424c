"""Worker processes that do one job after another; one that dies takes its job with it and nothing else.

`concurrent.futures` gives its whole pool up when a process dies. Knows nothing of studies.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.process import BaseProcess

__all__ = ["Failed", "Workers"]

_END_TIMEOUT_S = 5.0
_POLL_S = 0.5

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Failed:
    """A job that came to nothing; `error` says why, `traceback` where, if it was an exception."""

    error: str
    traceback: str = ""


@dataclass
class _Worker(Generic[JobT]):
    process: BaseProcess
    connection: Connection
    job: JobT | None = None


class Workers(Generic[JobT, ResultT]):
    """Some processes that are used again and again; leaving the context ends them, whatever they do.

    Args:
        function: what is done with a job, both fit to be pickled.
        num_workers: processes at most.
    """

    def __init__(self, function: Callable[[JobT], ResultT], num_workers: int) -> None:
        self._function = function
        self._num_workers = num_workers
        self._context = multiprocessing.get_context("spawn")  # threads of torch and gRPC survive no fork
        self._workers: list[_Worker[JobT]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the processes, whatever they do."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_END_TIMEOUT_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._workers.clear()

    @property
    def running(self) -> list[JobT]:
        """The jobs that are being done."""
        return [worker.job for worker in self._workers if worker.job is not None]

    def run(
        self, jobs: Iterable[JobT], on_wait: Callable[[], bool] = lambda: True
    ) -> Iterator[tuple[JobT, ResultT | Failed]]:
        """Does jobs, some at a time; yields each with what came of it, as it ends.

        Args:
            jobs: what there is to do.
            on_wait: called about twice a second; where it returns False, no more jobs are begun.
        """
        waiting = deque(jobs)
        while waiting or self.running:
            if not on_wait():
                waiting.clear()
            self._begin(waiting)
            busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
            for ready in wait(list(busy), timeout=_POLL_S):
                yield self._take(busy[ready])  # type: ignore[index]

    def _begin(self, waiting: deque[JobT]) -> None:
        """Hands jobs to workers that have none."""
        while waiting and len(self.running) < self._num_workers:
            worker = self._idle() or self._start()
            job = waiting.popleft()
            worker.job = job
            with contextlib.suppress(BrokenPipeError):  # it died since; the look at it tells
                worker.connection.send(job)

    def _idle(self) -> _Worker[JobT] | None:
        """Returns a worker that has no job; those that died without one are dropped, and cost none."""
        for worker in [worker for worker in self._workers if worker.job is None]:
            if worker.process.is_alive():
                return worker
            self._drop(worker)
        return None

    def _drop(self, worker: _Worker[JobT]) -> None:
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)

    def _take(self, worker: _Worker[JobT]) -> tuple[JobT, ResultT | Failed]:
        job, worker.job = worker.job, None
        assert job is not None  # noqa: S101 - it was busy
        try:
            result: ResultT | Failed = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._drop(worker)
            result = Failed(f"its process died with exit code {worker.process.exitcode}")
        return job, result

    def _start(self) -> _Worker[JobT]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._function), daemon=True)
        process.start()
        theirs.close()  # so that its end is ours to see
        worker: _Worker[JobT] = _Worker(process, ours)
        self._workers.append(worker)
        return worker


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Is what a worker does; ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to all; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job = connection.recv()
            try:
                result = function(job)
            except Exception as error:  # noqa: BLE001 - told by the parent
                result = Failed(f"{type(error).__name__}: {error}", traceback.format_exc())
            connection.send(result)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # in the middle of a job that nobody waits for
