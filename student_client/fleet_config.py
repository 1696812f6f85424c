"""A fleet: students that share a base config, each with changes of its own; validated before any starts."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from preceptor.settings import problems, read_fields
from student_client.config import TrainConfig, put

__all__ = ["FleetConfig", "JobSettings", "merged", "nested", "read_base"]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class JobSettings(BaseModel):
    """What a student's Ray job gets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ship_client: bool = Field(
        default=True,
        description="Whether the client's code is sent along; false: it is installed there.",
    )
    py_modules: tuple[Path, ...] = Field(
        default=(), description="Folders of packages that students are imported from, sent along."
    )
    pip: tuple[str, ...] = Field(default=(), description="Packages that are installed for the job.")
    env_vars: dict[str, str] = Field(
        default_factory=dict, description="Environment; anyone who may see the cluster's jobs can read it."
    )
    python: str | None = Field(
        default=None,
        description="The cluster's Python; null: this one for a Ray of one's own, else `python`.",
    )
    num_cpus: float = Field(default=0.0, ge=0, description="Logical CPUs of the job's driver.")
    resources: dict[str, float] = Field(default_factory=dict, description="Other resources of the driver.")


class FleetConfig(BaseModel):
    """Many students, each a Ray job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=_NAME, description="Names the fleet and its folder.")
    output: Path = Field(default=Path("out"), description="Where runs are kept; shared by all nodes.")
    base: dict[str, Any] | str = Field(
        default_factory=dict, description="Fields of a training run, or the file that has them."
    )
    students: tuple[dict[str, Any], ...] = Field(
        default=({},), description="Each student's name and the fields it changes, nested or by dotted name."
    )
    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="Values by dotted name; every student is run with each combination."
    )
    parallelism: int = Field(default=2, ge=1, description="Students that are trained at a time.")
    max_restarts: int = Field(default=2, ge=0, description="How often a job that died is started again.")
    address: str | None = Field(
        default=None,
        description="The job server, http://HOST:8265; null: RAY_API_SERVER_ADDRESS, or a Ray of its own.",
    )
    job: JobSettings = Field(default_factory=JobSettings, description="What each job gets.")
    _runs: tuple[TrainConfig, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _check_students(self) -> Self:
        if not self.students:
            raise ValueError("students: got none, expected at least one")
        return self

    @property
    def runs(self) -> tuple[TrainConfig, ...]:
        """The students' configs."""
        return self._runs

    @property
    def folder(self) -> Path:
        """Where the fleet's own state is."""
        return self.output / f"fleet-{self.name}"

    @classmethod
    def load(cls, path: Path) -> FleetConfig:
        """Reads a YAML file; paths in it are relative to its folder, except `output`.

        Raises:
            OSError: a file can't be read.
            ValueError: it is not YAML, or a field is wrong; the message names the student and the field.
        """
        return cls.of(read_fields(path), path.resolve().parent)

    @classmethod
    def of(cls, content: dict[str, Any], folder: Path) -> FleetConfig:
        """Builds a fleet of fields; errors and paths as in `load`.

        Args:
            content: the fields.
            folder: what relative paths start from.
        """
        fleet = cls.model_validate(content)
        job = fleet.job.model_copy(
            update={"py_modules": tuple((folder / path).resolve() for path in fleet.job.py_modules)}
        )
        fleet = fleet.model_copy(update={"output": fleet.output.resolve(), "job": job})
        base, base_folder = read_base(fleet.base, folder)
        runs = [
            fleet._run(base, base_folder, changes, folder)  # noqa: SLF001 - of this class
            for changes in fleet._all_changes()  # noqa: SLF001
        ]
        names = [run.name for run in runs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"students: got {twice} more than once, expected different names")
        fleet._runs = tuple(runs)  # noqa: SLF001
        return fleet

    def _all_changes(self) -> list[dict[str, Any]]:
        """Returns what each run changes in the base: students times the grid's combinations."""
        combinations = [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]
        all_changes = []
        for student in self.students:
            for combination in combinations:
                parts = [str(student["name"])] if "name" in student else []
                parts += [f"{name.rpartition('.')[2]}-{value}" for name, value in combination.items()]
                name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-.")
                all_changes.append({**student, **combination, "name": name})
        return all_changes

    def _run(
        self, base: dict[str, Any], base_folder: Path, changes: dict[str, Any], folder: Path
    ) -> TrainConfig:
        """Returns a student's config; `changes` may have dotted names."""
        name = changes["name"]
        if not name:
            raise ValueError("students: got one without a name, expected `name`, or a `grid` to name it by")
        try:
            own = TrainConfig.resolve(nested(changes), folder)
            content = merged(TrainConfig.resolve(base, base_folder), own)
            return TrainConfig.model_validate({**content, "output": self.output})
        except ValidationError as error:
            raise ValueError(f"student {name}: {problems(error)}") from None


def read_base(base: dict[str, Any] | str, folder: Path) -> tuple[dict[str, Any], Path]:
    """Returns the fields that runs share, and the folder that relative paths in them start from.

    Args:
        base: the fields, or the name of the file that has them.
        folder: of the file that says so.

    Raises:
        ValueError: the file can't be read, or is not YAML.
    """
    if not isinstance(base, str):
        return base, folder
    path = folder / base
    try:
        return read_fields(path), path.resolve().parent
    except OSError as error:
        raise ValueError(f"base: {path} can't be read: {error.strerror}") from None


def nested(changes: dict[str, Any]) -> dict[str, Any]:
    """Returns fields that may have dotted names as fields within fields."""
    result: dict[str, Any] = {}
    for name, value in changes.items():
        change: dict[str, Any] = {}
        put(change, name.split("."), value)
        result = merged(result, change)
    return result


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns `base` with the values of `changes`, dictionaries within merged alike."""
    result = dict(base)
    for name, value in changes.items():
        nested = result.get(name)
        result[name] = (
            merged(nested, value) if isinstance(value, dict) and isinstance(nested, dict) else value
        )
    return result
