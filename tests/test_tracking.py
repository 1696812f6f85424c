"""Metrics in MLflow and TensorBoard, as those libraries read them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from student_client.config import TrainConfig
from student_client.tracking import Tracker, TrackingConfig

if TYPE_CHECKING:
    from pathlib import Path

STEPS = {
    "kind": "steps",
    "step": 20,
    "losses": {"loss": 0.5, "kd": 0.25},
    "examples_per_s": 9.0,
    "waiting_share": 0.5,
    "step_times": {"step_s": 0.5, "student_s": 0.25, "wire_s": 0.125, "queue_s": 0.125, "teacher_s": 0.0},
}
EPOCH = {
    "kind": "epoch",
    "step": 20,
    "metric": "accuracy",
    "valid": 0.75,
    "waiting_share": 0.5,
    "num_reconnects": 1,
}


def client_of(folder: Path) -> Any:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    return MlflowClient(folder.resolve().as_uri())


def test_mlflow_has_params_curves_and_the_end(tmp_path: Path) -> None:
    tracker = Tracker(TrackingConfig(mlflow=str(tmp_path / "ml"), experiment="e"), tmp_path)
    tracker.start("a run", {"optimizer": {"lr": 0.1}, "name": "a run"})
    tracker.log(STEPS)
    tracker.log(EPOCH)
    tracker.finish({"test": 0.7, "metric": "accuracy", "num_steps": 20})
    client = client_of(tmp_path / "ml")
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert run.data.params["optimizer.lr"] == "0.1"
    assert run.data.metrics["train/kd"] == 0.25
    assert run.data.metrics["valid/accuracy"] == 0.75
    assert run.data.metrics["speed/queue_s"] == 0.125
    assert run.data.metrics["final/test"] == 0.7
    assert run.info.status == "FINISHED"


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tmp_path: Path) -> None:
    config = TrackingConfig(mlflow=str(tmp_path / "ml"))
    first = Tracker(config, tmp_path)
    first.start("a run", {"name": "a run"})
    first.log(STEPS)
    first.fail()
    second = Tracker(config, tmp_path)
    second.start("a run", {"name": "a run"})
    second.log({**STEPS, "step": 40})
    second.finish({})
    client = client_of(tmp_path / "ml")
    (run,) = client.search_runs([client.get_experiment_by_name("preceptor").experiment_id])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [20, 40]


def scalars(path: Path) -> dict[str, float]:
    """Reads TensorBoard's events: length, its checksum, content, its checksum."""
    content, found = path.read_bytes(), {}
    while content:
        length = int.from_bytes(content[:8], "little")
        body = content[12 : 12 + length]
        assert masked_crc32c(body) == int.from_bytes(content[12 + length : 16 + length], "little")
        for value in Event.FromString(body).summary.value:
            found[value.tag] = value.simple_value
        content = content[16 + length :]
    return found


def test_tensorboard_has_the_curves(tmp_path: Path) -> None:
    tracker = Tracker(TrackingConfig(tensorboard=True), tmp_path)
    tracker.start("a run", {})
    tracker.log(STEPS)
    tracker.log(EPOCH)
    tracker.finish({})
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert scalars(path)["train/loss"] == 0.5
    assert scalars(path)["valid/accuracy"] == 0.75


def test_a_server_that_is_away_costs_a_warning_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "no-folder"
    file.touch()
    tracker = Tracker(TrackingConfig(mlflow=str(file)), tmp_path)
    with caplog.at_level(logging.WARNING, "student_client.tracking"):
        tracker.start("a run", {})
        tracker.log(STEPS)
        tracker.finish({})
    assert [record.name for record in caplog.records].count("student_client.tracking") == 1
    assert "mlflow gets no more metrics" in caplog.text


def test_nothing_is_tracked_unless_asked(tmp_path: Path) -> None:
    tracker = Tracker(TrackingConfig(), tmp_path)
    tracker.start("a run", {})
    tracker.log(STEPS)
    tracker.finish({})
    assert list(tmp_path.iterdir()) == []


def test_passwords_stay_out_of_configs() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD") as told:
        TrackingConfig(mlflow="https://me:secret@mlflow.example")
    assert "secret" not in str(told.value)
    content = {"name": "a", "tracking": {"mlflow": "https://me:secret@mlflow.example"}}
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD") as told:
        TrainConfig.model_validate(content)
    assert "secret" not in str(told.value)


def test_a_folder_of_mlflow_does_not_depend_on_where_a_worker_runs(tmp_path: Path) -> None:
    assert TrackingConfig(mlflow="mlruns").resolved(tmp_path).mlflow == str(tmp_path / "mlruns")
    uri = TrackingConfig(mlflow="https://mlflow.example")
    assert uri.resolved(tmp_path) == uri
