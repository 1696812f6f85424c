"""A fleet's students as Ray jobs; the only file of the fleet that knows Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

import preceptor
import student_client
from preceptor.local_ray import LocalRayError, connected_ray
from student_client.credentials import TOKEN_VARIABLE, has_token_variable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.job_submission import JobSubmissionClient

    from student_client.fleet_config import FleetConfig, JobSettings

__all__ = ["Job", "JobRefusedError", "JobServerError", "Jobs", "RayJobs", "check_token", "job_server"]

_STATUS = re.compile(r"status code (\d{3})")
_MAX_ERROR_LENGTH = 500
_REFUSALS = range(400, 500)
_ANSWER_TIMEOUT_S = 60.0
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "COLUMNS": "1000",  # an error is one line of the log
}


class JobServerError(RuntimeError):
    """The job server does not answer, or refuses a job."""


class JobRefusedError(JobServerError):
    """The job server answers, and says no."""


@dataclass(frozen=True)
class Job:
    """How a job is.

    Attributes:
        status: where it is in its life; "gone" if the server does not know it.
        exit_code: of its command, once that has ended.
    """

    status: Literal["pending", "running", "succeeded", "failed", "stopped", "gone"]
    exit_code: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing will come of it any more."""
        return self.status not in ("pending", "running")


class Jobs(Protocol):
    """Where a fleet's jobs run; all methods may raise `JobServerError`."""

    def submit(self, submission_id: str, run: str, *, fresh: str) -> None:
        """Starts the job of a run, by its name; an earlier run is deleted once for each text of `fresh`."""
        ...

    def job(self, submission_id: str) -> Job:
        """Returns how a job is."""
        ...

    def stop(self, submission_id: str) -> None:
        """Ends a job; one that has ended is left alone."""
        ...

    def logs(self, submission_id: str) -> str:
        """Returns what a job has printed."""
        ...


class RayJobs:
    """Jobs on a Ray cluster.

    Args:
        address: of the job server, http://HOST:PORT.
        settings: what each job gets.
        configs: the folder with the runs' configs, NAME.yaml each; sent along.
        python: the cluster's Python, where the settings name none.
    """

    def __init__(self, address: str, settings: JobSettings, configs: Path, *, python: str = "python") -> None:
        if not _is_url(address):
            raise JobServerError(f"address: got {address!r}, expected http://HOST:PORT of a job server")
        self._settings = settings
        self._configs = configs
        self._python = settings.python or python
        with _errors(f"job server {address}"):
            self._client = _client(address)

    def submit(self, submission_id: str, run: str, *, fresh: str) -> None:
        """See `Jobs`."""
        words = [self._python, "-m", "student_client", "train", f"{run}.yaml", "--json"]
        if fresh:
            words += ["--fresh-once", fresh]
        with _errors(f"job {submission_id}"):
            self._client.submit_job(
                entrypoint=shlex.join(words),
                submission_id=submission_id,
                runtime_env=self._runtime_env(),
                metadata={"preceptor_run": run},
                entrypoint_num_cpus=self._settings.num_cpus,
                entrypoint_resources=self._settings.resources or None,
            )

    def _runtime_env(self) -> dict[str, Any]:
        settings = self._settings
        modules = [str(path) for path in settings.py_modules]
        if settings.ship_client:
            # A student needs the client only; the teacher's code stays where the teacher is.
            modules += [str(Path(next(iter(module.__path__)))) for module in (student_client, preceptor)]
        runtime_env: dict[str, Any] = {
            "working_dir": str(self._configs),
            "env_vars": {**_ENVIRONMENT, **settings.env_vars},
        }
        if modules:
            runtime_env["py_modules"] = modules
        if settings.pip:
            runtime_env["pip"] = list(settings.pip)
        return runtime_env

    def job(self, submission_id: str) -> Job:
        """See `Jobs`."""
        try:
            with _errors(f"job {submission_id}"):
                info = self._client.get_job_info(submission_id)
        except JobRefusedError as error:
            if _status_of(str(error)) == HTTPStatus.NOT_FOUND:
                return Job("gone")
            raise
        return Job(info.status.value.lower(), info.driver_exit_code)

    def stop(self, submission_id: str) -> None:
        """See `Jobs`."""
        if not self.job(submission_id).has_ended:
            with _errors(f"job {submission_id}"):
                self._client.stop_job(submission_id)

    def logs(self, submission_id: str) -> str:
        """See `Jobs`."""
        with _errors(f"job {submission_id}"):
            logs: str = self._client.get_job_logs(submission_id)
        return logs


def _client(address: str) -> JobSubmissionClient:
    """Connects to a job server, waiting for each answer so long and no longer; Ray itself waits for ever."""
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415 - heavy

    # They would tell of each package of each job, in the middle of what the fleet shows; importing them sets
    # their levels.
    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray's is untyped
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=_ANSWER_TIMEOUT_S, **options)

    return Client(address)


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turns what the client raises while open into our errors: a refusal, or a server that is not well."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the client's errors have no common base
        text = str(error).strip() or type(error).__name__
        is_refusal = isinstance(error, ValueError) or _status_of(text) in _REFUSALS
        kind = JobRefusedError if is_refusal and not isinstance(error, OSError) else JobServerError
        raise kind(f"{what}: {_shortened(text)}") from None


def check_token(config: FleetConfig) -> None:
    """Makes sure that students have their token where jobs get nothing of this process's environment.

    It is not sent along: whoever may see the cluster's jobs could read it.

    Raises:
        ValueError: one would have to have it from there.
    """
    if not has_token_variable() or TOKEN_VARIABLE in config.job.env_vars:
        return
    without = [run.name for run in config.runs if run.teacher and run.teacher.options.token_file is None]
    if without:
        raise ValueError(
            f"{TOKEN_VARIABLE}: the jobs of {', '.join(without)} do not see it; name "
            "teacher.options.token_file, a file that the cluster's nodes have, or unset it where the teacher "
            "asks for none (in job.env_vars whoever sees the cluster's jobs can read it)"
        )


def _is_url(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _status_of(text: str) -> int | None:
    """Returns the HTTP status that the client's error tells of."""
    found = _STATUS.search(text)
    return None if found is None else int(found[1])


def _shortened(text: str) -> str:
    """Returns the last line, with the status that the first one may tell of."""
    lines = text.splitlines()
    status = _STATUS.search(lines[0])
    last = lines[-1][:_MAX_ERROR_LENGTH]
    return last if status is None or status[0] in last else f"{status[0]}: {last}"


@contextlib.contextmanager
def job_server(address: str | None, *, num_cpus: int = 8) -> Iterator[tuple[str, bool]]:
    """Yields the address of a job server, and whether it is one of our own that ends with this.

    Args:
        address: http://HOST:PORT; None: RAY_API_SERVER_ADDRESS, the Ray this process is connected to, the one
            at RAY_ADDRESS, or else a Ray that is started here.
        num_cpus: logical CPUs of that Ray.

    Raises:
        JobServerError: that Ray takes no jobs, or does not start.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if address is None and os.environ.get("RAY_ADDRESS", "").startswith("http"):
        address = os.environ["RAY_ADDRESS"]
    if address is not None:
        yield address, False
        return
    with contextlib.ExitStack() as stack:
        try:
            here = stack.enter_context(connected_ray(num_cpus, jobs=True))
        except (LocalRayError, ConnectionError) as error:
            raise JobServerError(str(error)) from None
        if here.dashboard is None:
            raise JobServerError("job server: the Ray that this process is connected to has none")
        yield here.dashboard, here.is_own
