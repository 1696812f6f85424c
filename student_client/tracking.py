"""Sends a run's metrics to MLflow and TensorBoard; both are optional, and none can stop a run."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from preceptor.tracing import check_target, check_tracing_installed, resolved_target
from student_client.records import flat
from student_client.whole_files import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Tracker", "TrackingConfig"]

_RUN_ID_FILE = "mlflow_run_id"
_MAX_PARAM_LENGTH = 500

logger = logging.getLogger(__name__)


class TrackingConfig(BaseModel):
    """Where metrics go besides the run's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    mlflow: str | None = Field(default=None, description="An MLflow tracking URI, or a folder; null: none.")
    experiment: str = Field(default="preceptor", description="The MLflow experiment.")
    tensorboard: bool = Field(default=False, description="Whether the folder gets TensorBoard's events.")
    traces: str | None = Field(
        default=None,
        description="Where spans of steps and turns go: a file, or otlp://HOST:PORT; null: none.",
    )

    @field_validator("traces")
    @classmethod
    def _check_traces(cls, target: str | None) -> str | None:
        return check_target(target)

    @field_validator("mlflow")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri is not None and urlsplit(uri).password is not None:
            raise ValueError(
                "got a URI with a password, which would be written to files; expected one without, and "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )
        return uri

    def check_installed(self) -> None:
        """Makes sure that what metrics are sent with is there.

        Raises:
            ValueError: it is not; says how to get it.
        """
        for wanted, package in ((self.mlflow, "mlflow"), (self.tensorboard, "tensorboardX")):
            if wanted and importlib.util.find_spec(package) is None:
                raise ValueError(
                    f"tracking: {package} is not installed; get it with: pip install 'preceptor[tracking]'"
                )
        check_tracing_installed(self.traces)

    def resolved(self, folder: Path) -> TrackingConfig:
        """Returns the same with a folder that does not depend on where a worker runs."""
        update = {"traces": resolved_target(self.traces, folder)}
        if self.mlflow is not None and "://" not in self.mlflow:
            update["mlflow"] = str(folder / self.mlflow)
        return self.model_copy(update=update)


class Tracker:
    """Follows one run.

    Args:
        config: where metrics go.
        folder: the run's.
    """

    def __init__(self, config: TrackingConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._mlflow: Any = None
        self._run_id = ""
        self._writer: Any = None

    def start(self, name: str, params: Mapping[str, Any], step: int = 0) -> None:
        """Starts to follow, or goes on where an earlier process stopped.

        Args:
            name: of the run.
            params: its config, nested.
            step: where it goes on; what was told of later steps is taken back where that is possible.
        """
        if self._config.tensorboard:
            self._try("tensorboard", lambda: self._start_tensorboard(step))
        if self._config.mlflow is not None:
            self._try("mlflow", lambda: self._start_mlflow(name, params))

    def log(self, line: Mapping[str, Any]) -> None:
        """Sends the numbers of a line of `metrics.jsonl`."""
        values = _values(line)
        if self._writer is not None:
            self._try("tensorboard", lambda: self._write_tensorboard(values, line["step"]))
        if self._mlflow is not None:
            self._try("mlflow", lambda: self._write_mlflow(values, line["step"]))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Sends what came of the run and ends."""
        final = {f"final/{name}": value for name, value in facts.items() if isinstance(value, int | float)}
        if self._mlflow is not None:
            self._try("mlflow", lambda: self._write_mlflow(final, facts.get("num_steps", 0)))
        self._end("FINISHED")

    def fail(self) -> None:
        """Ends a run that broke off."""
        self._end("FAILED")

    def _end(self, status: str) -> None:
        if self._mlflow is not None:
            self._try("mlflow", lambda: self._mlflow.set_terminated(self._run_id, status))
        if self._writer is not None:
            self._try("tensorboard", self._writer.close)

    def _start_tensorboard(self, step: int) -> None:
        from tensorboardX import SummaryWriter  # noqa: PLC0415 - optional

        self._writer = SummaryWriter(str(self._folder / "tensorboard"), purge_step=step + 1 if step else None)

    def _write_tensorboard(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def _start_mlflow(self, name: str, params: Mapping[str, Any]) -> None:
        # Read when MLflow is imported: its file store asks for it, its requests would wait for minutes.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from mlflow.tracking import MlflowClient  # noqa: PLC0415 - optional

        target = self._config.mlflow or ""
        client = MlflowClient(target if "://" in target else Path(target).resolve().as_uri())
        known = self._folder / _RUN_ID_FILE
        if known.exists():
            self._run_id = known.read_text()
            client.set_terminated(self._run_id, "RUNNING")
        else:
            experiment = client.get_experiment_by_name(self._config.experiment)
            number = (
                experiment.experiment_id
                if experiment is not None
                else client.create_experiment(self._config.experiment)
            )
            self._run_id = client.create_run(number, run_name=name).info.run_id
            write_text(known, self._run_id)
            for key, value in flat(params).items():
                client.log_param(self._run_id, key, str(value)[:_MAX_PARAM_LENGTH])
        self._mlflow = client

    def _write_mlflow(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415 - optional

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now_ms, step) for name, value in values.items()]
        self._mlflow.log_batch(self._run_id, metrics=metrics)

    def _try(self, what: str, action: Callable[[], object]) -> None:
        """Gives a tracker up at its first error: a run is worth more than its curves."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - these libraries have no common error
            logger.warning("%s gets no more metrics: %s", what, error)
            if what == "mlflow":
                self._mlflow = None
            else:
                self._writer = None


def _values(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line by the names they are tracked under."""
    if line["kind"] == "epoch":
        names = ("waiting_share", "num_reconnects")
        return {f"valid/{line['metric']}": line["valid"], **{f"epoch/{name}": line[name] for name in names}}
    return {
        **{f"train/{name}": value for name, value in line["losses"].items()},
        "speed/examples_per_s": line["examples_per_s"],
        "speed/waiting_share": line["waiting_share"],
        **{f"speed/{name}": seconds for name, seconds in line["step_times"].items()},
    }
