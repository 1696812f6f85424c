"""What a job server's answers mean; real jobs are in test_fleet_serve.py."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import ray

from student_client import fleet_jobs
from student_client.fleet_config import JobSettings
from student_client.fleet_jobs import JobRefusedError, JobServerError, RayJobs

if TYPE_CHECKING:
    from pathlib import Path


class Answering(BaseHTTPRequestHandler):
    """A job server that answers every question about jobs with one status."""

    status = 404
    is_silent = False

    def do_GET(self) -> None:
        if self.is_silent:
            self.rfile.read()  # until the other side has had enough
            return
        is_version = self.path == "/api/version"
        facts = {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": "s"}
        self.send_response(200 if is_version else self.status)
        self.end_headers()
        self.wfile.write(json.dumps(facts).encode() if is_version else b"no such luck")

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def test_an_address_is_a_url(tmp_path: Path) -> None:
    with pytest.raises(JobServerError, match="address: got 'localhost:8265', expected http://HOST:PORT"):
        RayJobs("localhost:8265", JobSettings(), tmp_path)


@pytest.mark.parametrize("status", [404, 400, 500, 503])
def test_only_a_server_that_knows_of_no_such_job_means_that_it_is_gone(
    tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answering, "status", status)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        jobs = RayJobs(f"http://127.0.0.1:{server.server_port}", JobSettings(), tmp_path)
        if status == 404:
            assert jobs.job("job-500").status == "gone"
        else:
            message = f"job job-404: .*status code {status}: no such luck"
            with pytest.raises(JobServerError, match=message) as told:
                jobs.job("job-404")
            assert isinstance(told.value, JobRefusedError) == (status == 400)
        server.shutdown()


def test_uploads_are_not_told_of_where_the_fleet_shows_how_far_it_is() -> None:
    # In a process of its own, whose Ray is not imported yet: importing it sets these levels, too.
    script = """
import logging, pathlib
from student_client.fleet_config import JobSettings
from student_client.fleet_jobs import JobServerError, RayJobs
try:
    RayJobs("http://127.0.0.1:1", JobSettings(), pathlib.Path())
except JobServerError:
    for name in ("dashboard_sdk", "job.sdk"):
        print(logging.getLogger(f"ray.dashboard.modules.{name}").level)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(logging.WARNING)] * 2


def test_a_server_that_takes_calls_and_does_not_answer_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_jobs, "_ANSWER_TIMEOUT_S", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(Answering, "is_silent", True)
        with pytest.raises(JobServerError, match=f"job server {url}: .*timed out"):
            RayJobs(url, JobSettings(), tmp_path)
        monkeypatch.setattr(Answering, "is_silent", False)
        jobs = RayJobs(url, JobSettings(), tmp_path)
        monkeypatch.setattr(Answering, "is_silent", True)
        with pytest.raises(JobServerError, match=r"job a-1: .*timed out"):
            jobs.job("a-1")
        server.shutdown()
