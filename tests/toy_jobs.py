"""A small fleet, and jobs that end as a test says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from student_client.fleet_config import FleetConfig
from student_client.fleet_jobs import Job, JobRefusedError, JobServerError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["STUDENT", "Cluster", "fleet_of"]

STUDENT = {
    "student": {"factory": "tests.toy_student:ToyStudent"},
    "data": {"task": "classification", "features": {"ids": "int64"}, "train": "t.csv"},
}


def fleet_of(folder: Path, **changes: Any) -> FleetConfig:
    content = {
        "name": "test",
        "output": str(folder / "out"),
        "base": STUDENT,
        "students": [{"name": name} for name in "abc"],
        **changes,
    }
    return FleetConfig.of(content, folder)


class Cluster:
    """Jobs that run until a test ends them.

    Attributes:
        started: their runs, and whether an earlier one was to be deleted.
        wishes: that this is done once, as they were told.
    """

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.jobs: dict[str, Job] = {}
        self.printed: dict[str, str] = {}
        self.started: list[tuple[str, bool]] = []
        self.wishes: list[str] = []
        self.is_away = False
        self.loses_answer = False
        self.refusal = ""

    def submit(self, submission_id: str, run: str, *, fresh: str) -> None:
        self._answer()
        if self.refusal:
            raise JobRefusedError(self.refusal)
        self.started.append((run, bool(fresh)))
        self.wishes.append(fresh)
        self.jobs[submission_id] = Job("running")
        if self.loses_answer:
            raise JobServerError("the connection was reset")

    def job(self, submission_id: str) -> Job:
        self._answer()
        return self.jobs.get(submission_id, Job("gone"))

    def stop(self, submission_id: str) -> None:
        self.jobs[submission_id] = Job("stopped")

    def logs(self, submission_id: str) -> str:
        return self.printed.get(submission_id, "")

    def _answer(self) -> None:
        if self.is_away:
            raise JobServerError("nobody is there")

    def end(self, run: str, status: Any = "succeeded", exit_code: int | None = 0, printed: str = "") -> None:
        """Ends the running job of a student."""
        (number,) = (
            number for number, job in self.jobs.items() if f"-{run}-" in number and job.status == "running"
        )
        self.jobs[number] = Job(status, exit_code)
        self.printed[number] = printed

    @property
    def running(self) -> list[str]:
        return sorted(number.split("-")[1] for number, job in self.jobs.items() if job.status == "running")
