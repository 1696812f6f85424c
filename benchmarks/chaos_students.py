"""The students of `benchmarks.chaos` as it sees them: processes that do the steps they are granted."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.chaos_worker import WorkerConfig, checkpoint_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import IO

    from benchmarks.chaos_service import ChaosService

__all__ = ["Clock", "Student", "StudentLostError", "TimeIsUpError", "students_of"]

_END_TIMEOUT_S = 10.0
_ENVIRONMENT = {"GRPC_VERBOSITY": "NONE", "OMP_NUM_THREADS": "1"}  # gRPC would tell of what is broken


class TimeIsUpError(Exception):
    """The whole run has taken as long as it may."""


class StudentLostError(Exception):
    """A student gave up, or did not do its steps in time; says which one and why."""


class Clock:
    """The time that is left of the whole run."""

    def __init__(self, total_s: float) -> None:
        self._end_s = time.monotonic() + total_s

    def at_most(self, seconds: float) -> float:
        """Returns so many seconds, or those that are left.

        Raises:
            TimeIsUpError: none are.
        """
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeIsUpError
        return min(seconds, left_s)


class Student:
    """One student's process, started again as often as it is killed.

    Attributes:
        name: its tenant's.
        answers_s: when its turns were answered, on `time.monotonic`.
        num_reconnects: how often its process, as it is now, had to open another stream.
    """

    def __init__(self, name: str, config: WorkerConfig, clock: Clock) -> None:
        self.name = name
        self.answers_s: list[float] = []
        self.num_reconnects = 0
        self._folder = Path(config.folder)
        self._config = config
        self._clock = clock
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._step = 0
        self._held_at: str | None = None
        self._error: str | None = None

    def start(self) -> None:
        """Starts its process, which goes on from its checkpoint if there is one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "config.json"
        path.write_text(json.dumps(asdict(self._config)))
        command = [sys.executable, "-m", "benchmarks.chaos_worker", str(path)]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
        )
        self._error = self._held_at = None
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def kill(self) -> None:
        """Ends its process, without a word and wherever it is."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(_END_TIMEOUT_S)
            with contextlib.suppress(BrokenPipeError):
                _pipe(process.stdin).close()

    def grant(self, until: int, *, hold: tuple[int, str] | None = None) -> None:
        """Lets it do its steps until it has done so many; it stops at one point of one step if asked to."""
        self._held_at = None
        held = None if hold is None else {"step": hold[0], "point": hold[1]}
        self._write({"until": until, "hold": held})

    def go_on(self) -> None:
        """Lets it leave the point where it is held."""
        self._write({"go": True})

    def await_held(self, timeout_s: float) -> str:
        """Waits until it stands where it is to be held; returns HOST:PORT of its replica."""
        self._await(lambda: self._held_at is not None, timeout_s, "is not where it is to be held")
        return self._held_at or ""

    def await_step(self, step: int, timeout_s: float) -> None:
        """Waits until it has done so many steps."""
        self._await(lambda: self._step >= step, timeout_s, f"has not done step {step}")

    def result(self) -> dict[str, Any]:
        """Returns what it saved last."""
        return checkpoint_of(self._folder)

    def _write(self, command: dict[str, Any]) -> None:
        assert self._process is not None  # noqa: S101 - started
        try:
            pipe = _pipe(self._process.stdin)
            pipe.write(json.dumps(command) + "\n")
            pipe.flush()
        except BrokenPipeError:
            raise StudentLostError(f"{self.name}: {self._error or 'its process has ended'}") from None

    def _await(self, condition: Callable[[], bool], timeout_s: float, problem: str) -> None:
        with self._changed:
            done = self._changed.wait_for(
                lambda: condition() or self._error is not None, self._clock.at_most(timeout_s)
            )
        if not done or self._error is not None:
            self._clock.at_most(timeout_s)  # or there was no time
            raise StudentLostError(f"{self.name}: {self._error or f'{problem} after {timeout_s:g} s'}")

    def _listen(self, process: subprocess.Popen[str]) -> None:
        with _pipe(process.stdout) as lines:
            for line in lines:
                self._take(process, json.loads(line))
        self._take(process, {"error": "its process has ended"})

    def _take(self, process: subprocess.Popen[str], facts: dict[str, Any]) -> None:
        with self._changed:
            if process is not self._process:  # the last words of one that was killed
                return
            if "answered_s" in facts:
                self.answers_s.append(facts["answered_s"])
            self._step = facts.get("step", self._step)
            self.num_reconnects = facts.get("reconnects", self.num_reconnects)
            self._held_at = facts.get("target", self._held_at)
            self._error = self._error or facts.get("error")
            self._changed.notify_all()


def _pipe(end: IO[str] | None) -> IO[str]:
    assert end is not None  # noqa: S101 - asked for
    return end


@contextlib.contextmanager
def students_of(
    service: ChaosService, folder: Path, clock: Clock, tenants: Sequence[str]
) -> Iterator[list[Student]]:
    """Has a student of each tenant while open."""
    students = []
    for seed, tenant in enumerate(tenants):
        config = WorkerConfig(
            address=service.address,
            folder=str(folder / tenant),
            token_file=str(service.tokens[tenant]),
            ca_file=str(service.ca_file),
            seed=seed,
        )
        students.append(Student(tenant, config, clock))
    try:
        for student in students:
            student.start()
        yield students
    finally:
        for student in students:
            student.kill()
