"""A Ray of one's own that takes jobs, beside other Rays on the machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from preceptor.local_ray import connected_ray
from tests.test_serve import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.serve

OWNER = """
import shlex, sys, time
import ray
from ray.job_submission import JobSubmissionClient
from student_client.fleet_jobs import job_server

with job_server(None, num_cpus=1) as (url, is_own):
    client = JobSubmissionClient(url)
    code = "import ray; ray.init(); print(ray.get_runtime_context().gcs_address)"
    job = client.submit_job(entrypoint=shlex.join([sys.executable, "-c", code]))
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.2)
    is_here = client.get_job_logs(job).split()[-1] == ray.get_runtime_context().gcs_address
    print(is_own, client.get_job_status(job).value, is_here, flush=True)
    sys.stdin.read()
"""
GONE_S = 60.0


@contextlib.contextmanager
def owner() -> Iterator[tuple[psutil.Popen, str]]:
    """A process that has a Ray of its own and ran a job there; yields it and what it said of the job."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = psutil.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(GONE_S)
        process.stdout.close()


def servers_of(owner: psutil.Process) -> list[psutil.Process]:
    """Ray's own processes below one; those of jobs come and go."""
    found = []
    for child in owner.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() in {"raylet", "gcs_server"}:
                found.append(child)
    return found


def test_two_take_jobs_at_once_and_neither_outlives_its_owner() -> None:
    default = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    before = default.read_bytes() if default.exists() else None
    with owner() as (first, said_first), owner() as (second, said_second):
        assert said_first == said_second == "True SUCCEEDED True"
        assert (default.read_bytes() if default.exists() else None) == before
        servers, others = servers_of(first), servers_of(second)
        assert len(servers) == len(others) == 2
        first.send_signal(signal.SIGKILL)
        _, left = psutil.wait_procs(servers, GONE_S)
        assert left == []
        assert all(each.is_running() for each in others)
    _, left = psutil.wait_procs(others, GONE_S)
    assert left == []


def test_a_cluster_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    message = f"RAY_ADDRESS: got {address}, where no Ray answered within 10 s: .*refused"
    with pytest.raises(ConnectionError, match=message), connected_ray():
        pass
