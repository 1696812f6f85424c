"""The cells of a study: one training run each, with all that decides what comes of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from preceptor.settings import problems
from student_client.config import TrainConfig
from student_client.factories import load_factory
from student_client.fleet_config import merged
from student_client.records import config_digest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from student_client.study_config import StudyConfig, TaskSource

__all__ = ["COORDINATES", "Cell", "cells_of", "check_factories", "digest_of", "wanted_of"]

COORDINATES = ("task", "labels", "student", "method", "seed")

# What a cell's config has in the place of what is known only when it runs.
_SOURCES = {name: f"{name}.csv" for name in ("train", "valid", "test")}
_ADDRESS = "preceptor://127.0.0.1:1"


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        task: its name, and so on.
        labels: labelled rows; None: all.
        student: name.
        method: name.
        seed: of data, weights and order.
        teacher: the name of its teacher; None: it needs none.
        config: of the run; sources and the teacher's address are yet to be filled in.
        source: of the task's tables.
        takes_unlabelled: whether it is given the task's unlabelled rows, if there are any.
    """

    task: str
    labels: int | None
    student: str
    method: str
    seed: int
    teacher: str | None
    config: TrainConfig
    source: TaskSource
    takes_unlabelled: bool

    @property
    def coordinates(self) -> dict[str, Any]:
        """Which cell it is."""
        return {name: getattr(self, name) for name in COORDINATES}

    @property
    def title(self) -> str:
        """What people call it."""
        labels = "all" if self.labels is None else self.labels
        return f"{self.task}, {labels} labels, {self.student}, {self.method}, seed {self.seed}"

    @property
    def data_name(self) -> str:
        """A folder's name for its tables; cells with the same have the same tables."""
        digest = digest_of([self.source.make, self.source.kwargs])[:8]
        labels = "all" if self.labels is None else self.labels
        return f"{self.task}-{labels}-{self.seed}-{digest}"

    def key(self, fingerprint: str) -> str:
        """Returns a digest of all that decides its result.

        Args:
            fingerprint: of the teacher's weights; empty without one.
        """
        student = self.config.student
        names = {
            name: Path(path).name
            for name in ("pretrained", "tokenizer")
            if (path := getattr(student, name)) is not None
        }
        config = self.config.model_copy(update={"student": student.model_copy(update=names)})
        return digest_of(
            [
                config_digest(config),
                self.source.make,
                self.source.kwargs,
                self.labels,
                self.takes_unlabelled,
                fingerprint,
            ]
        )


def digest_of(content: Any) -> str:
    """Returns the SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def cells_of(study: StudyConfig, only: Mapping[str, Collection[str]] | None = None) -> list[Cell]:
    """Returns a study's cells, a seed after the other, so that a part of it compares all methods already.

    Args:
        study: what is compared.
        only: which values of coordinates are wanted, as text; "all" are labels of None.

    Raises:
        ValueError: a cell's config is wrong, a role has no teacher, or there is no such coordinate.
    """
    cells = [
        _cell(study, task, labels, student, method, seed)
        for seed in study.seeds
        for task, source in study.tasks.items()
        for labels in source.labels
        for student in study.students
        for method in study.methods
    ]
    for name, wanted in (only or {}).items():
        if name not in COORDINATES:
            raise ValueError(f"only: got {name!r}, expected one of {list(COORDINATES)}")
        known = {_text(getattr(cell, name)) for cell in cells}
        unknown = sorted(set(wanted) - known)
        if unknown:
            raise ValueError(f"only: got {name} {unknown}, expected some of {sorted(known)}")
    return [
        cell
        for cell in cells
        if all(_text(getattr(cell, name)) in wanted for name, wanted in (only or {}).items())
    ]


def wanted_of(only: Sequence[str]) -> dict[str, list[str]]:
    """Returns which values of coordinates are wanted, for `cells_of`; each text is NAME=VALUE.

    Raises:
        ValueError: one is not.
    """
    wanted: dict[str, list[str]] = {}
    for each in only:
        name, separator, value = each.partition("=")
        if not separator:
            raise ValueError(f"--only: got {each!r}, expected NAME=VALUE")
        wanted.setdefault(name, []).append(value)
    return wanted


def check_factories(study: StudyConfig, cells: Collection[Cell]) -> None:
    """Imports what makes the cells' tasks and teachers, so that a mistake is told before the first cell.

    Args:
        study: that the cells are of.
        cells: those that are wanted.

    Raises:
        ValueError: there is no such callable; the message names the field.
    """
    tasks = {f"tasks.{cell.task}.make": cell.source.make for cell in cells}
    names = {cell.teacher for cell in cells if cell.teacher is not None}
    teachers = {f"teachers.{name}.make": study.teachers[name].make for name in names}
    for field, make in {**tasks, **teachers}.items():
        if make is not None:  # else the teacher is served by a config, or is there already
            load_factory(make, study.python_path, field)


def _text(value: object) -> str:
    return "all" if value is None else str(value)


def _cell(study: StudyConfig, task: str, labels: int | None, student: str, method: str, seed: int) -> Cell:
    source = study.tasks[task]
    content = merged({"losses": {}}, study.shared_fields)  # what a method doesn't say it doesn't do
    for changes in (source.changes, study.students[student], study.methods[method]):
        content = merged(content, changes)
    content = {name: value for name, value in content.items() if name != "against"}
    says_unlabelled = "unlabelled" in (content.get("data") or {})
    own = {"name": "cell", "output": ".", "seed": seed, "data": _SOURCES, "teacher": {"address": _ADDRESS}}
    try:
        config = TrainConfig.model_validate(merged(content, own))
    except ValidationError as error:
        raise ValueError(f"task {task}, student {student}, method {method}: {problems(error)}") from None
    if config.data.stream:
        raise ValueError(f"task {task}: data.stream: got true, expected false in a study")
    if not config.needs_teacher:
        config = config.model_copy(update={"teacher": None})
    return Cell(
        task=task,
        labels=labels,
        student=student,
        method=method,
        seed=seed,
        teacher=_teacher(study, task, method) if config.teacher else None,
        config=config,
        source=source,
        takes_unlabelled=config.teacher is not None and not says_unlabelled,
    )


def _teacher(study: StudyConfig, task: str, method: str) -> str:
    role, teachers = study.role_of(method), study.tasks[task].teachers
    if role not in teachers:
        raise ValueError(
            f"tasks.{task}.teachers: got {sorted(teachers)}, expected {role!r} too, which method {method!r} "
            "learns from"
        )
    return teachers[role]
