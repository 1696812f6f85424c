"""Has a study's teacher answer while its cells run: in a process of `preceptor serve`, or elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from student_client.client import TeacherClient
from student_client.errors import TeacherError
from student_client.factories import load_factory
from student_client.study_cells import digest_of
from student_client.study_results import TeacherFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from student_client.options import ClientOptions
    from student_client.study_config import TeacherSource

__all__ = ["ServedTeacher", "TeacherFailedError", "served"]

_START_TIMEOUT_S = 300.0
_END_TIMEOUT_S = 60.0
_NUM_PORTS = 12  # the directory's and those of replicas, some of which may be taken
_NUM_ATTEMPTS = 50
_NUM_LAST_LINES = 5
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# The command `preceptor` of this Python; it ends with whoever holds the other end of its input.
_SERVE = """
import os, signal, threading
def watch():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=watch, daemon=True).start()
from preceptor.cli import main
main()
"""


class TeacherFailedError(RuntimeError):
    """A study's teacher can't be had; the message says why."""


@dataclass(frozen=True)
class ServedTeacher:
    """A teacher that answers.

    Attributes:
        address: where.
        facts: what it said it is.
        is_alive: whether it is still served, as far as anybody here knows.
    """

    address: str
    facts: TeacherFacts
    is_alive: Callable[[], bool]


@contextlib.contextmanager
def served(
    name: str,
    source: TeacherSource,
    folder: Path,
    *,
    options: ClientOptions | None = None,
    python_path: Sequence[Path] = (),
) -> Iterator[ServedTeacher]:
    """Has a teacher answer while open.

    Args:
        name: of the teacher in the study.
        source: which one it is.
        folder: where teachers are made, and logs are kept.
        options: of the client that asks what it is.
        python_path: folders that `make` is imported from.

    Raises:
        TeacherFailedError: it can't be made, does not start, or does not say what it is.
    """
    with contextlib.ExitStack() as stack:
        if source.address is not None:
            address, is_alive = source.address, lambda: True
        else:
            config = _made(name, source, folder, python_path)
            process, address = stack.enter_context(_serving(name, config, folder))
            is_alive = lambda: process.poll() is None  # noqa: E731
        try:
            told = TeacherClient(address, options).describe().teacher
        except (TeacherError, ValueError) as error:
            raise TeacherFailedError(f"teachers.{name}: {error}") from error
        yield ServedTeacher(address, TeacherFacts(told.name, told.fingerprint, told.num_parameters), is_alive)


def _made(name: str, source: TeacherSource, folder: Path, python_path: Sequence[Path]) -> Path:
    """Returns the config to serve; where a callable makes it, in a folder that it finds again."""
    if source.serve is not None:
        return source.serve
    place = folder / f"{name}-{digest_of([source.make, source.kwargs, source.seed])[:8]}"
    place.mkdir(parents=True, exist_ok=True)
    try:
        make = load_factory(source.make or "", python_path, f"teachers.{name}.make")
        return Path(make(place, seed=source.seed, **source.kwargs))
    except Exception as error:  # what it may raise has no common base
        raise TeacherFailedError(f"teachers.{name}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _serving(name: str, config: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs `preceptor serve` while open; yields its process and the address that it told."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    command = [sys.executable, "-c", _SERVE, "serve", str(config), "--port", str(_free_ports()), "--json"]
    with log.open("w") as errors:
        process = subprocess.Popen(  # noqa: S603 - this Python, and a file that the study names
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "COLUMNS": "200"},  # errors in one line
            start_new_session=True,  # a terminal's Ctrl-C would end it before the cells that ask it
        )
    overdue = threading.Timer(_START_TIMEOUT_S, process.kill)
    overdue.start()
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        line = process.stdout.readline()
        overdue.cancel()
        if not line:
            process.wait(_END_TIMEOUT_S)
            raise TeacherFailedError(f"teachers.{name}: it could not be served: {_last_words(log)}")
        yield process, json.loads(line)["address"]
    finally:
        overdue.cancel()
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Stops the service as Ctrl-C does, so that its Ray ends too."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in _COLOURS.sub("", log.read_text(errors="replace")).splitlines()]
    return " ".join([line for line in lines if line][-_NUM_LAST_LINES:]) or f"it said nothing, see {log}"


def _free_ports() -> int:
    """Returns a port that is free together with some after it."""
    for _ in range(_NUM_ATTEMPTS):
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                for number in range(1, _NUM_PORTS):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            except (OSError, OverflowError):
                continue
        return port
    raise TeacherFailedError(f"no {_NUM_PORTS} ports in a row are free on this machine")
