"""The Ray that a command runs on: one that is there, or one of its own.

A Ray that takes jobs is started in a process of its own (`preceptor.ray_head`): its job agent needs a port
that no other Ray on the machine has, and `ray.init` can't choose one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LocalRayError", "RayConnection", "connected_ray"]

_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 30.0
_ANSWER_TIMEOUT_S = 10.0


class LocalRayError(RuntimeError):
    """A Ray could not be started here; the message has its last words."""


@dataclass(frozen=True)
class RayConnection:
    """The Ray that this process is connected to.

    Attributes:
        dashboard: its dashboard and job server, http://HOST:PORT; None: it has none.
        is_own: whether it was started here and ends with the connection.
    """

    dashboard: str | None
    is_own: bool


@contextlib.contextmanager
def connected_ray(num_cpus: int = 8, *, jobs: bool = False) -> Iterator[RayConnection]:
    """Is connected to a Ray while open: this process's, that of RAY_ADDRESS, or one that is started here.

    Args:
        num_cpus: logical CPUs of a Ray that is started here.
        jobs: whether that Ray takes jobs.

    Raises:
        LocalRayError: it does not start.
        ConnectionError: nobody answers at RAY_ADDRESS.
    """
    import ray  # noqa: PLC0415 - heavy, and many who import this don't need it

    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")  # else it warns on few cores
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    is_there = ray.is_initialized()
    is_own = not is_there and "RAY_ADDRESS" not in os.environ
    if is_own:
        # Nobody takes this machine away: a process less to start for each run of Ray Train.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Nor is a process wanted for each logical CPU from the start: 45 MiB each, and no job could use them.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    with contextlib.ExitStack() as stack:
        if not is_own:
            if not is_there:
                _require_answer(os.environ["RAY_ADDRESS"])
            context = ray.init(ignore_reinit_error=True, **quiet)
        elif jobs:
            _require_token()
            context = ray.init(address=stack.enter_context(_head(num_cpus)), **quiet)
        else:
            context = ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
        if not is_there:
            stack.callback(ray.shutdown)
        dashboard = context.dashboard_url
        yield RayConnection(f"http://{dashboard}" if dashboard else None, is_own)


def _require_answer(address: str) -> None:
    """Makes sure that somebody is at HOST:PORT: Ray would try for a quarter of an hour."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.port is None:
        return  # "auto", which Ray looks for on this machine
    try:
        socket.create_connection((parts.hostname or "", parts.port), _ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(
            f"RAY_ADDRESS: got {address}, where no Ray answered within {_ANSWER_TIMEOUT_S:g} s: {error}"
        ) from None


def _require_token() -> None:
    """Has a Ray that is started next ask everyone for a token, and this process show it.

    Ray does so by itself for what `ray.init` starts, but with no public function; these are what it calls.
    """
    from ray._private.authentication import authentication_token_setup as setup  # noqa: PLC0415

    logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of it
    setup.enable_token_auth_by_default()
    setup.ensure_token_if_auth_enabled(create_token_if_missing=True)


@contextlib.contextmanager
def _head(num_cpus: int) -> Iterator[str]:
    """Runs `preceptor.ray_head` while open; yields Ray's address, HOST:PORT."""
    import torch  # noqa: PLC0415 - heavy

    num_gpus = torch.cuda.device_count()
    command = [sys.executable, "-m", "preceptor.ray_head", str(num_cpus), str(num_gpus)]
    # It ends when its standard input is closed, also if this process is killed. Ctrl-C is for us to hear.
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as process:
        until_closed, answer = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        timer = threading.Timer(_START_TIMEOUT_S, process.kill)
        timer.start()
        try:
            line = answer.readline()
            timer.cancel()
            try:
                address: str = json.loads(line)["address"]
            except ValueError:
                process.kill()
                raise LocalRayError(
                    f"Ray did not start within {_START_TIMEOUT_S:g} s, or ended at once (it said "
                    f"{line[:200]!r}); see its output"
                ) from None
            yield address
        finally:
            timer.cancel()
            until_closed.close()
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
