"""Fine-tunes a student with Ray Train, against a served teacher.

    result = train(TrainConfig.load(Path("run.yaml")))

The driver hands the config to Ray Train's workers; each builds the same student, talks with the teacher in a
conversation of its own, and averages gradients with the others. A run that is started again under its name
goes on from its last checkpoint, exactly.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from ray import train as ray_train
from ray.train.torch import TorchConfig, TorchTrainer

from preceptor.local_ray import connected_ray
from student_client.activity import Activity, forget_activities, longest_activity
from student_client.checkpoints import ResumeError
from student_client.clearing import clear_run
from student_client.cluster import resources_of
from student_client.data_config import SOURCES, resolve_source
from student_client.environment import environment
from student_client.errors import DeadlineExceededError, TeacherUnavailableError
from student_client.locks import folder_lock
from student_client.records import (
    CONFIG_FILE,
    METRICS_FILE,
    RESULT_FILE,
    config_digest,
    read_new_lines,
)
from student_client.run import StudentRun
from student_client.told_file import ToldFile
from student_client.train_worker import train_worker
from student_client.whole_files import write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import BaseModel

    from student_client.config import TrainConfig
    from student_client.errors import TeacherError

__all__ = ["TrainError", "TrainResult", "check", "check_folder", "local_ray", "train"]

_POLL_S = 0.2
_JOB_PACKAGES = "working_dir_files"  # Ray's name for it
_BARRIER_TIMEOUT_S = 600


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
def local_ray(num_cpus: int = 8) -> Iterator[bool]:
    """Has Ray running while open: the one this process is in, that of `RAY_ADDRESS`, or one of its own.

    Yields whether it is one of its own.

    Args:
        num_cpus: logical CPUs of a Ray that is started here.
    """
    # Ray Train hands reports to its controller once a poll; the default of 2 s would dominate short runs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_S))
    with connected_ray(num_cpus) as here:
        yield here.is_own


def train(
    config: TrainConfig,
    *,
    fresh: str | bool = False,
    checked: bool = False,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Runs a config to its end on the Ray this process is connected to (see `local_ray`).

    Args:
        config: of the run.
        fresh: whether the files of an earlier run of this name are deleted first; if not, it is resumed. A
            text names the wish: they are deleted once, however often the run is started with it.
        checked: whether `check_folder` and `check` have passed it already.
        on_progress: called in this thread with each new line of the run's `metrics.jsonl`, and with one of
            kind "doing" while a worker does something that takes long: its "text", "worker" and "seconds".

    Raises:
        ValueError: the data or the student are not what the config says.
        ResumeError: the folder holds another config's run.
        FolderLockedError: another process trains this run.
        TeacherError: the teacher does not say what it is, or was away for too long.
        TrainError: the run failed.
    """
    if not checked:
        check_folder(config, fresh=fresh)
        check(config)
    config = _resolved(config)
    with folder_lock(config.folder, "another process trains this run; give this one another name"):
        clear_run(config.folder, fresh=fresh)
        _check_same(config)  # another process may have been here since
        return _train(config, on_progress)


def _train(config: TrainConfig, on_progress: Callable[[dict[str, Any]], None] | None) -> TrainResult:
    folder = config.folder
    write_json(folder / "environment.json", environment())
    write_text(folder / CONFIG_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    metrics = folder / METRICS_FILE
    _, position = read_new_lines(metrics, 0)
    start_s = time.monotonic()
    doing = ""
    forget_activities(folder)
    outcome: list[BaseException | None] = []
    thread = threading.Thread(target=_fit, args=(config, outcome), name=f"train-{config.name}", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        lines, position = read_new_lines(metrics, position)
        if on_progress is not None:
            doing = _tell_doing(folder, doing, on_progress)
            for line in lines:
                on_progress(line)
    forget_activities(folder)
    if outcome[0] is not None:
        raise _error_of(config.name, outcome[0]) from outcome[0]
    facts = json.loads((folder / RESULT_FILE).read_text())
    return TrainResult(config.name, folder, {**facts, "seconds": time.monotonic() - start_s})


def _tell_doing(folder: Path, told: str, on_progress: Callable[[dict[str, Any]], None]) -> str:
    """Tells what a worker does that takes long, while it does; returns what is told now."""
    doing = longest_activity(folder)
    if doing is not None:
        seconds = max(time.time() - doing["since_s"], 0.0)
        on_progress({"kind": "doing", "text": doing["text"], "worker": doing["worker"], "seconds": seconds})
    elif told:
        on_progress({"kind": "doing", "text": "", "worker": 0, "seconds": 0.0})
    return "" if doing is None else doing["text"]


def check(config: TrainConfig, activity: Activity | None = None) -> None:
    """Builds the run on this machine, so that a mistake is told before anything is started.

    Of lessons one is taken, and a first student has one epoch: the workers do all of it.

    Raises:
        ValueError: the data or the student are not what the config says, or what it needs is not installed.
        TeacherError: the teacher does not say what it is.
    """
    config.tracking.check_installed()
    activity = activity or Activity()
    keep = ToldFile(config, 0, activity, writes=False)  # what is known is not found out again
    one_lesson = config.lessons.model_copy(update={"epochs": min(config.lessons.epochs, 1)})
    config = config.model_copy(update={"lessons": one_lesson, "epochs": 1})
    with torch.random.fork_rng():
        StudentRun(config, world_size=config.worker_range[1], activity=activity, keep=keep).close()


def check_folder(config: TrainConfig, *, fresh: str | bool = False) -> None:
    """Makes sure that a run's folder can be written and holds no run of another config.

    Raises:
        ValueError: it can't be written, or does not last.
        ResumeError: it holds another config's run, and `fresh` does not say that this is deleted.
    """
    output = config.output.resolve()
    if any(part == _JOB_PACKAGES for part in output.parts):
        raise ValueError(
            f"output: got {output}, in the job's own package, which is deleted after it; expected an "
            "absolute path that all nodes share, for example --set output=/shared/runs"
        )
    nearest = next(path for path in (output / config.name, *(output / config.name).parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ValueError(
            f"output: got {output}, which can't be written: {nearest} is no folder, or read-only"
        )
    if not fresh:
        _check_same(_resolved(config))


def _check_same(config: TrainConfig) -> None:
    """Makes sure that the folder's checkpoints, if there are any, are of this config."""
    path = config.folder / CONFIG_FILE
    if not (path.exists() and any(config.folder.glob("checkpoint_*"))):
        return
    try:
        earlier = config_digest(type(config).model_validate(yaml.safe_load(path.read_text())))
    except (ValueError, yaml.YAMLError):
        return  # of another version; the checkpoint itself says more
    if earlier != config_digest(config):
        raise ResumeError(
            f"{config.folder}: holds checkpoints of another config; choose another name or start it fresh"
        )


def _resolved(config: TrainConfig) -> TrainConfig:
    """Returns the config with paths that hold in a worker, whose working directory is another one."""
    here = Path.cwd()

    def absolute(model: BaseModel, *names: str) -> dict[str, str]:
        values = {name: getattr(model, name) for name in names}
        return {name: resolve_source(value, here) for name, value in values.items() if value}

    data, student, teacher = config.data, config.student, config.teacher
    if teacher is not None:
        teacher = teacher.model_copy(update={"options": teacher.options.resolved(here)})
    return config.model_copy(
        update={
            "teacher": teacher,
            "output": config.output.resolve(),
            "data": data.model_copy(update=absolute(data, *SOURCES)),
            "student": student.model_copy(update=absolute(student, "pretrained", "tokenizer")),
            "python_path": tuple(folder.resolve() for folder in config.python_path),
            "tracking": config.tracking.resolved(here),
        }
    )


def _torch_config(config: TrainConfig) -> TorchConfig:
    # NCCL refuses two workers on one GPU; Gloo carries tensors of CUDA too.
    shares_gpu = 0 < config.gpus_per_worker < 1
    # No worker waits for a lost one for ever.
    return TorchConfig(backend="gloo" if shares_gpu else None, timeout_s=config.peer_timeout_s)


def _fit(config: TrainConfig, outcome: list[BaseException | None]) -> None:
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(_BARRIER_TIMEOUT_S))
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(config.start_timeout_s)
    try:
        _trainer(config).fit()
    except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
        outcome.append(error)
    else:
        outcome.append(None)


def _trainer(config: TrainConfig) -> TorchTrainer:
    fewest, most = config.worker_range
    return TorchTrainer(
        train_worker,
        torch_config=_torch_config(config),
        train_loop_config={"config": config.model_dump_json()},
        scaling_config=ray_train.ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker=resources_of(config),
        ),
        run_config=ray_train.RunConfig(
            name=config.name,
            storage_path=str(config.output),
            failure_config=ray_train.FailureConfig(
                max_failures=config.max_failures,
                controller_failure_limit=config.max_failures,  # workers that do not start
            ),
        ),
    )


def _error_of(name: str, error: BaseException) -> TrainError | TeacherError:
    """Returns why a run failed, without Ray's wrapping: its teacher is away, or the first worker's error."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    causes = [failures[rank] for rank in sorted(failures)]
    inner = [getattr(cause, "cause", None) or cause for cause in causes]
    # That the teacher is away may pass; the run goes on from its last checkpoint when it is started again. A
    # worker that it is away for ends, and the others miss that one.
    away = [each for each in inner if isinstance(each, (TeacherUnavailableError, DeadlineExceededError))]
    told = [*away, *inner][0]
    message = f"run {name}: {type(told).__name__}: {told}"
    return TeacherUnavailableError(message) if away else TrainError(message)
