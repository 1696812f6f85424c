"""Worker processes: they are used again, and one that died is not."""

from __future__ import annotations

import os
import signal

from student_client.study_workers import Failed, Workers


def _pid(job: int) -> int:
    """Returns who does the job; of a negative one nobody hears."""
    if job < 0:
        os._exit(3)
    return os.getpid()


def test_a_worker_is_used_again_and_one_that_died_takes_its_job_only() -> None:
    with Workers(_pid, 1) as workers:
        (_, first), (_, second), (_, dead), (_, third) = workers.run([1, 2, -1, 3])
    assert first == second
    assert dead == Failed("its process died with exit code 3")
    assert isinstance(third, int)
    assert third not in {first, os.getpid()}


def test_a_worker_that_died_between_jobs_takes_none() -> None:
    with Workers(_pid, 1) as workers:
        ((_, first),) = workers.run([1])
        assert isinstance(first, int)
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        ((_, second),) = workers.run([2])
    assert isinstance(second, int)
    assert second != first
