"""Runs a fleet: some students at a time, each a job, until all are done or have failed.

Knows jobs only by the `Jobs` protocol. Everything it decides is on disk before it is done, so its own process
may be killed: another one goes on from there.
"""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from student_client.fleet_jobs import JobRefusedError, JobServerError
from student_client.fleet_state import FleetFiles, Progress, RunProgress, StudentState
from student_client.records import config_digest
from student_client.whole_files import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from student_client.config import TrainConfig
    from student_client.fleet_config import FleetConfig
    from student_client.fleet_jobs import Job, Jobs

__all__ = ["Fleet", "StudentView", "view"]

EXIT_FAILED, EXIT_WRONG_CONFIG = 1, 2  # of `train`
_POLL_S = 1.0
_SERVER_PATIENCE_S = 120.0
_MAX_ERROR_LENGTH = 400
_ERROR_LINE = re.compile(r"^\s*error:\s*(.*)$")


@dataclass(frozen=True)
class StudentView:
    """A student as people see it."""

    name: str
    state: StudentState
    progress: Progress


class Fleet:
    """The students of a config and their jobs.

    Args:
        config: of the fleet.
        jobs: where they run.
        fresh: whether earlier runs of the same names are deleted first.
        again: the students whose earlier runs are.
        clock: seconds of the epoch.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        config: FleetConfig,
        jobs: Jobs,
        *,
        fresh: bool = False,
        again: Collection[str] = (),
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._jobs = jobs
        self._clock = clock
        self._sleep = sleep
        self._runs = {run.name: run for run in config.runs}
        self._files = FleetFiles(config.folder)
        self._progress = {name: RunProgress(run.folder) for name, run in self._runs.items()}
        self._submitted: set[str] = set()
        self._fresh = set(self._runs) if fresh else set(again)
        self._load()

    def _load(self) -> None:
        known = self._files.load()
        self._earlier = [
            each.submission_id
            for name, each in known.items()
            if name in self._fresh and each.state == "running"
        ]
        self._changed: list[str] = []
        self._states = {
            name: StudentState(fresh=uuid.uuid4().hex)
            if name in self._fresh
            else self._known(known.get(name), run)
            for name, run in self._runs.items()
        }

    def _known(self, state: StudentState | None, run: TrainConfig) -> StudentState:
        """Returns what is known of a student; if its config has changed since its job ended, nothing."""
        if state is None:
            return StudentState()
        if state.state == "running" or state.digest in ("", config_digest(run)):
            return state
        if any(run.folder.glob("checkpoint_*")):
            self._changed.append(run.name)
        return StudentState()

    def run(
        self, on_change: Callable[[list[StudentView]], None] = lambda _: None, *, resume: bool = False
    ) -> bool:
        """Runs to the end; returns whether all students are done.

        Args:
            on_change: called about once a second with all students.
            resume: whether those wait for their turn again that failed or were stopped.

        Raises:
            ValueError: a student's config has changed, and its folder holds what was trained before.
            FolderLockedError: another process runs it.
            JobServerError: the job server did not answer for minutes.
        """
        with self._files.lock():
            self._load()  # whoever had the lock may have written since
            self._refuse_changed()
            if resume:
                self.resume()
            for name in self._fresh & self._states.keys():
                self._files.forget_to_stop(name)
            self._write_configs()
            self._stop_earlier()
            lost_s = None
            while True:
                try:
                    self.tick()
                    lost_s = None
                except JobServerError:
                    lost_s = lost_s or self._clock()
                    if self._clock() - lost_s > _SERVER_PATIENCE_S:
                        raise
                on_change(self.views())
                if not any(each.state in ("waiting", "running") for each in self._states.values()):
                    return all(each.state == "done" for each in self._states.values())
                self._sleep(_POLL_S)

    def _refuse_changed(self) -> None:
        if self._changed:
            again = " ".join(f"--again {name}" for name in self._changed)
            raise ValueError(
                f"students {', '.join(self._changed)}: their configs have changed since they were trained; "
                f"{again} replaces what was trained, another name keeps it"
            )

    def _stop_earlier(self) -> None:
        """Ends the jobs of an earlier run that is to be deleted: they would write into the new folders."""
        deadline_s = self._clock() + _SERVER_PATIENCE_S
        for submission_id in self._earlier:
            self._jobs.stop(submission_id)
            while not self._jobs.job(submission_id).has_ended:
                if self._clock() > deadline_s:
                    raise JobServerError(f"job {submission_id}: was stopped and has not ended")
                self._sleep(_POLL_S)

    def resume(self) -> None:
        """Has those wait for their turn again that failed or were stopped."""
        for name, student in self._states.items():
            self._files.forget_to_stop(name)
            if student.state in ("failed", "stopped"):
                student.state, student.attempts, student.error = "waiting", 0, ""
        self._files.save(self._states)

    def views(self) -> list[StudentView]:
        """Returns all students, in the order of the config."""
        return [StudentView(name, state, self._progress[name].read()) for name, state in self._states.items()]

    def tick(self) -> None:
        """Looks at every job once and starts those whose turn it is."""
        for name, student in self._states.items():
            is_asked_to_stop = self._files.is_asked_to_stop(name)
            if student.state == "running":
                job = self._jobs.job(student.submission_id)
                if job.status != "gone":
                    self._submitted.add(student.submission_id)
                if job.has_ended:
                    self._settle(name, student, job)
                elif is_asked_to_stop:
                    self._jobs.stop(student.submission_id)
            elif student.state == "waiting" and is_asked_to_stop:
                student.state = "stopped"
            if student.state == "stopped":
                self._files.forget_to_stop(name)
        num_running = sum(each.state == "running" for each in self._states.values())
        for name, student in self._states.items():
            if student.state == "waiting" and num_running < self._config.parallelism:
                self._start(name, student)
                num_running += 1
        self._files.save(self._states)

    def _settle(self, name: str, student: StudentState, job: Job) -> None:
        """Decides what the end of a job means for its student."""
        log = self._keep_log(name, student, job)
        # A job may die, or be forgotten, after its run has ended well.
        if job.status == "succeeded" or self._progress[name].ended_since(student.started_s):
            student.state, student.error, student.fresh = "done", "", ""
        elif job.status == "stopped" or self._files.is_asked_to_stop(name):
            student.state = "stopped"
        else:
            if job.status == "gone" and student.submission_id not in self._submitted:
                student.attempts -= 1  # it ended with the Ray of a process before this one
            student.error = _reason(log, job)
            # It said itself that it failed; one that was killed, or whose node was lost, could not. That its
            # teacher is away may pass.
            is_hopeless = job.exit_code in (EXIT_FAILED, EXIT_WRONG_CONFIG)
            may_restart = student.attempts <= self._config.max_restarts
            student.state = "waiting" if may_restart and not is_hopeless else "failed"

    def _start(self, name: str, student: StudentState) -> None:
        student.attempts += 1
        student.state = "running"
        student.digest = config_digest(self._runs[name])
        student.submission_id = f"{self._config.name}-{name}-{student.attempts}-{uuid.uuid4().hex[:8]}"
        student.started_s = self._clock()
        # Saved before it is submitted: whoever goes on from here finds the job, or that there is none.
        self._files.save(self._states)
        try:
            self._jobs.submit(student.submission_id, name, fresh=student.fresh)
        except JobRefusedError as error:
            student.error = str(error)
            student.state = "waiting" if student.attempts <= self._config.max_restarts else "failed"
        # After any other error it may have been taken all the same; the next look at it tells.

    def _keep_log(self, name: str, student: StudentState, job: Job) -> str:
        """Returns what a job has printed, and keeps it: its server may not last."""
        if job.status == "gone":
            return ""
        try:
            log = self._jobs.logs(student.submission_id)
        except JobServerError:
            return ""
        write_text(self._files.log(name), log)
        return log

    def _write_configs(self) -> None:
        for name, run in self._runs.items():
            text = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False)
            write_text(self._files.configs / f"{name}.yaml", text)


def _reason(log: str, job: Job) -> str:
    """Returns why a job ended: the error that its log ends with, or how it ended."""
    if job.status == "gone":
        return "the job server has no such job any more"
    told = [match[1] for line in log.splitlines() if (match := _ERROR_LINE.match(line))]
    if told:
        return told[-1].strip()[:_MAX_ERROR_LENGTH]
    return f"its driver ended with exit code {job.exit_code} and said nothing of it"


def view(config: FleetConfig) -> list[StudentView]:
    """Returns a fleet's students as its files tell of them, without any server."""
    known = FleetFiles(config.folder).load()
    return [
        StudentView(run.name, known.get(run.name, StudentState()), RunProgress(run.folder).read())
        for run in config.runs
    ]
