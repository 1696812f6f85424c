"""A study of small students who learn the parity of a number: tables, students that misbehave, results."""

from __future__ import annotations

import csv
import os
import random
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from services.teacher.config import ModuleConfig
from student_client.study_config import StudyConfig
from tests.toy import NUM_IDS
from tests.toy_student import ToyStudent, row_config

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["DyingStudent", "forgetful", "line_of", "make_teacher", "parity", "study_of", "write_study"]

ROOT = __file__.rpartition("/tests/")[0]


def parity(folder: Path, *, num_labels: int | None, seed: int, num_rows: int = 40) -> None:
    """Ids and whether they are odd."""
    numbers = random.Random(seed).choices(range(NUM_IDS), k=num_rows)
    for name, rows in (("train", numbers[:num_labels]), ("valid", range(8)), ("test", range(20))):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["ids", "label"])
            writer.writerows((number, "odd" if number % 2 else "even") for number in rows)
    (folder / "unlabelled.csv").write_text("ids\n" + "\n".join(map(str, range(16))) + "\n")
    with (folder.parents[1] / "made.txt").open("a") as made:
        made.write(f"{num_labels} {seed}\n")


def forgetful(folder: Path, *, num_labels: int | None, seed: int) -> None:
    """Writes no test rows."""
    parity(folder, num_labels=num_labels, seed=seed)
    (folder / "test.csv").unlink()


def make_teacher(folder: Path, *, seed: int = 0, scale: float = 1.0) -> Path:
    """Writes the config of a service of rows, their weights scaled, and the weights."""
    config = row_config(folder, drain_s=0.5, num_cpus=0.5)
    assert isinstance(config.model, ModuleConfig)
    weights = load_file(config.model.weights)
    save_file({name: scale * weight for name, weight in weights.items()}, config.model.weights)
    path = folder / "teacher.yaml"
    content = config.model_dump(mode="json", exclude_none=True)
    content["python_path"] = [ROOT]
    path.write_text(yaml.safe_dump(content))
    return path


class DyingStudent(ToyStudent):
    """Takes its process with it."""

    def forward(self, ids: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            os._exit(7)
        return super().forward(ids)


STUDY: dict[str, Any] = {
    "name": "toy",
    "base": {
        "epochs": 2,
        "batch_size": 16,
        "student": {
            "factory": "tests.toy_student:ToyStudent",
            "lower": "blocks.0",
            "upper": "blocks.1",
            "num_classes_kwarg": "num_classes",
        },
        "data": {"task": "classification", "features": {"ids": "int64"}},
        "talk": {"codec": {"message_dim": 4}, "reading": "replace"},
    },
    "tasks": {"parity": {"make": "tests.toy_study:parity", "labels": [10, None]}},
    "methods": {"none": {"losses.task": 1}, "slow": {"optimizer": {"lr": 0.00001}}},
    "seeds": [0, 1],
    "parallelism": 1,
}


def write_study(folder: Path, **changes: Any) -> Path:
    """Writes the YAML of a study whose folder is `folder`/out."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "output": str(folder / "out"), **changes}, sort_keys=False))
    return path


def study_of(folder: Path, **changes: Any) -> StudyConfig:
    """Returns the same as an object."""
    return StudyConfig.load(write_study(folder, **changes))


def line_of(method: str, test: float, **changes: Any) -> dict[str, Any]:
    """Returns a line of results."""
    line = {
        "task": "parity",
        "labels": 10,
        "student": "student",
        "method": method,
        "seed": 0,
        "metric": "accuracy",
        "valid": test,
        "test": test,
        "num_train": 10,
        "num_examples": 20,
        "versions": {"torch": "2"},
        "num_steps": 5,
        "best_epoch": 1,
        "wall_s": 2.0,
        "teacher": {
            "turns": 4,
            "tokens": 400,
            "bytes_sent": 1000,
            "bytes_received": 2000,
            "compute_s": 0.5,
            "waiting_s": 0.7,
        },
        "student_parameters": 100,
        "teacher_parameters": 1000,
        "student_ms_per_example": 0.1,
        "finished_at": "2026-01-01T00:00:00+00:00",
    }
    line |= changes
    return {
        "key": "-".join(str(line[name]) for name in ("task", "labels", "student", "method", "seed")),
        **line,
    }
