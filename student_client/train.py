"""Fine-tunes a student with Ray Train, against a served teacher.

    result = train(TrainConfig.load(Path("run.yaml")))

The driver hands the config to Ray Train's workers; each builds the same student, talks with the teacher in a
conversation of its own, and averages gradients with the others. A run that is started again under its name
goes on from its last checkpoint, exactly.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray import train as ray_train
from ray.train.torch import TorchTrainer, prepare_model

from student_client.config import TrainConfig
from student_client.records import (
    PROGRESS_FILE,
    Progress,
    config_digest,
    load_checkpoint,
    read_new_lines,
    save_checkpoint,
    write_json,
)
from student_client.run import StudentRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TrainError", "TrainResult", "check", "local_ray", "train", "train_worker"]

RESULT_FILE = "result.json"
STUDENT_FILE = "student.safetensors"
_POLL_S = 0.2


class TrainError(RuntimeError):
    """A run failed for good; the message has the first worker's error."""


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

    Attributes:
        name: of the run.
        folder: where its files are.
        facts: metric, its value on validation and test examples, epochs, seconds, see `result.json`.
    """

    name: str
    folder: Path
    facts: dict[str, Any]


@contextlib.contextmanager
def local_ray(num_cpus: int = 8) -> Iterator[None]:
    """Has Ray running while open: the one this process is in, that of `RAY_ADDRESS`, or one of its own.

    Args:
        num_cpus: logical CPUs of a Ray that is started here.
    """
    # Ray Train hands reports to its controller once a poll; the default of 2 s would dominate short runs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_S))
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")  # else it warns on few cores
    owns_ray = not ray.is_initialized()
    if owns_ray and "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    elif owns_ray:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        yield
    finally:
        if owns_ray:
            ray.shutdown()


def train(
    config: TrainConfig, *, fresh: bool = False, on_progress: Callable[[dict[str, Any]], None] | None = None
) -> TrainResult:
    """Runs a config to its end on the Ray this process is connected to (see `local_ray`).

    Args:
        config: of the run.
        fresh: whether the files of an earlier run of this name are deleted first; if not, it is resumed.
        on_progress: called in this thread with each line of the run's progress.

    Raises:
        ValueError: the data or the student are not what the config says.
        TeacherError: the teacher does not say what it is.
        TrainError: the run failed.
    """
    check(config)
    config = _resolved(config)
    folder = config.output / config.name
    if fresh and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / PROGRESS_FILE
    _, position = read_new_lines(progress, 0)
    start_s = time.monotonic()
    outcome: list[BaseException | None] = []
    thread = threading.Thread(target=_fit, args=(config, outcome), name=f"train-{config.name}", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        lines, position = read_new_lines(progress, position)
        for line in lines if on_progress else ():
            on_progress(line)  # type: ignore[misc]
    if outcome[0] is not None:
        raise TrainError(f"run {config.name}: {_first_cause(outcome[0])}") from outcome[0]
    facts = json.loads((folder / RESULT_FILE).read_text())
    return TrainResult(config.name, folder, {**facts, "seconds": time.monotonic() - start_s})


def check(config: TrainConfig) -> None:
    """Builds the run on this machine, so that a mistake is told before anything is started.

    Raises:
        ValueError: the data or the student are not what the config says.
        TeacherError: the teacher does not say what it is.
    """
    with torch.random.fork_rng():
        StudentRun(config).close()


def _resolved(config: TrainConfig) -> TrainConfig:
    """Returns the config with paths that hold in a worker, whose working directory is another one."""
    data = config.data
    paths = {name: path.resolve() for name in ("train", "valid", "test") if (path := getattr(data, name))}
    return config.model_copy(
        update={
            "output": config.output.resolve(),
            "data": data.model_copy(update=paths),
            "python_path": tuple(folder.resolve() for folder in config.python_path),
        }
    )


def train_worker(loop_config: dict[str, Any]) -> None:
    """Runs on each of Ray Train's workers; `loop_config` holds the run's config as JSON under "config"."""
    config = TrainConfig.model_validate_json(loop_config["config"])
    context = ray_train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.num_threads)
    run = StudentRun(
        config,
        rank=rank,
        world_size=world_size,
        # A codec half that this step's losses leave out gets no gradient.
        wrap=lambda module: prepare_model(module, parallel_strategy_kwargs={"find_unused_parameters": True}),
    )
    try:
        digest = config_digest(config)
        checkpoint = ray_train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                run.load_state(load_checkpoint(Path(folder), digest, rank))
        _train_epochs(run, rank, digest)
    finally:
        run.close()


def _train_epochs(run: StudentRun, rank: int, digest: str) -> None:
    config = run.config
    folder = config.output / config.name
    progress = Progress(folder)
    start_s = time.monotonic()
    while run.epoch < config.epochs:
        steps = list(run.train_epoch())
        if rank == 0:
            means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[-1]}
            progress.write(
                epoch=run.epoch,
                epochs=config.epochs,
                seconds=time.monotonic() - start_s,
                valid=run.last_valid,
                metric=run.metric,
                **{**run.conversation_facts(), "waiting_share": run.last_waiting_share},
                losses=means,
            )
        if run.epoch % config.checkpoint_every_epochs == 0 and run.epoch < config.epochs:
            _report(run.state(), rank, digest, {"epoch": run.epoch})
    last_state = run.state()  # `finish` puts the best weights in the student's place
    facts = run.finish()
    if rank == 0:
        run.save_student(folder / STUDENT_FILE)
        write_json(folder / RESULT_FILE, facts)
    _report(last_state, rank, digest, facts)


def _report(state: dict[str, Any], rank: int, digest: str, metrics: dict[str, Any]) -> None:
    """Hands metrics and a checkpoint to Ray Train; a barrier for all workers."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), state, digest, rank)
        ray_train.report(metrics, checkpoint=ray_train.Checkpoint.from_directory(folder))


def _fit(config: TrainConfig, outcome: list[BaseException | None]) -> None:
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump_json()},
        scaling_config=ray_train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker},
        ),
        run_config=ray_train.RunConfig(
            name=config.name,
            storage_path=str(config.output),
            failure_config=ray_train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
        outcome.append(error)
    else:
        outcome.append(None)


def _first_cause(error: BaseException) -> str:
    """Returns the error of the first worker that failed, without Ray's wrapping."""
    failures = getattr(error, "worker_failures", None)
    cause = failures[min(failures)] if failures else getattr(error, "controller_failure", error)
    inner = getattr(cause, "cause", None) or cause
    return f"{type(inner).__name__}: {inner}"
