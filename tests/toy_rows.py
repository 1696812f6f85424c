"""Runs of a small student on rows with and without labels, for tests of its losses."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import pytest

from student_client.run import StudentRun
from tests.test_train_run import make_config, row_server

if TYPE_CHECKING:
    from pathlib import Path

    from student_client.batches import Batch

__all__ = ["all_rows", "labelled", "row_server", "rows_run", "unlabelled"]

_STUDENT = {
    "factory": "tests.toy_student:ToyStudent",
    "kwargs": {"dropout": 0.0},
    "lower": "blocks.0",
    "upper": "blocks.1",
    "num_classes_kwarg": "num_classes",
}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Twenty ids whose label is their parity."""
    return _table(tmp_path / "train.csv", ["ids", "label"], [[number, number % 2] for number in range(20)])


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """Twelve other ids."""
    return _table(tmp_path / "unlabelled.csv", ["ids"], [[number] for number in range(20, 32)])


def _table(path: Path, columns: list[str], rows: list[list[int]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def rows_run(
    labelled: Path,
    unlabelled: Path | None = None,
    address: str | None = None,
    *,
    task: str = "classification",
    world: dict[str, Any] | None = None,
    **changes: Any,
) -> StudentRun:
    """Returns a run without dropout; `changes` are fields of its config, `world` of `StudentRun`."""
    sources = dict.fromkeys(("train", "valid", "test"), labelled)
    data = {**sources, "unlabelled": unlabelled, "task": task, "features": {"ids": "int64"}}
    fields = {"data": data, "student": _STUDENT, "losses": {"task": 1.0}, **changes}
    return StudentRun(make_config(labelled, address, **fields), **(world or {}))


def all_rows(run: StudentRun) -> Batch:
    """Returns the training rows as one batch, those without labels last."""
    return run.splits.train.example(len(run.splits.train))
