"""A study: methods x students x tasks x label budgets x seeds, validated before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from preceptor.settings import read_fields
from student_client.config import TrainConfig
from student_client.fleet_config import nested, read_base

__all__ = ["DEFAULT_ROLE", "StudyConfig", "TaskSource", "TeacherSource"]

DEFAULT_ROLE = "default"

_FACTORY = r"^[^:\s]+:[^:\s]+$"
_Labels = Annotated[int, Field(ge=1)] | None


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class TeacherSource(_Config):
    """A teacher: one that is served for the study, or one that is served already."""

    serve: Path | None = Field(
        default=None, description="A config of `preceptor serve`, which runs while the teacher's cells do."
    )
    make: str | None = Field(
        default=None,
        pattern=_FACTORY,
        description="`package.module:callable` of (folder, *, seed, **kwargs) that returns its path.",
    )
    seed: int = Field(default=0, ge=0, description="Of `make`.")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Of `make`.")
    address: str | None = Field(default=None, description="`preceptor://HOST:PORT` of one that is served.")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        given = [name for name in ("serve", "make", "address") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"serve, make, address: got {given or 'none'}, expected one of them")
        if self.make is None and (self.kwargs or self.seed):
            raise ValueError("seed, kwargs: expected with `make` only")
        return self


class TaskSource(_Config):
    """A task: where its tables come from, who teaches it, how many labels there are."""

    make: str = Field(
        pattern=_FACTORY,
        description="`package.module:callable` of (folder, *, num_labels, seed, **kwargs) that writes "
        "train.csv, valid.csv, test.csv and perhaps unlabelled.csv.",
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Of `make`.")
    teachers: dict[str, str] = Field(
        default_factory=dict, description="Names of teachers by the role they have here."
    )
    labels: tuple[_Labels, ...] = Field(
        default=(None,), min_length=1, description="Numbers of labelled rows to train on; null: all."
    )
    changes: dict[str, Any] = Field(
        default_factory=dict, alias="set", description="Fields of a training run that the task has."
    )


class StudyConfig(_Config):
    """What is compared, on what, how often."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the study and its folder.")
    output: Path = Field(default=Path("out"), description="Where the study's folder is.")
    base: dict[str, Any] | str = Field(
        default_factory=dict, description="Fields of a training run, or the file that has them."
    )
    teachers: dict[str, TeacherSource] = Field(default_factory=dict, description="Teachers by name.")
    tasks: dict[str, TaskSource] = Field(min_length=1, description="Tasks by name.")
    students: dict[str, dict[str, Any]] = Field(
        default={"student": {}}, min_length=1, description="What each student changes, by its name."
    )
    methods: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="What each method changes, by its name; `against` is the role of its teacher.",
    )
    baselines: tuple[str, ...] = Field(default=(), description="Methods that `ours` is compared with.")
    ours: str | None = Field(default=None, description="The method that the study is about.")
    controls: tuple[str, ...] = Field(default=(), description="Methods that should be no better than `none`.")
    none: str = Field(default="none", description="The method that controls are compared with.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0, 1, 2, 3, 4), min_length=1, description="Of data, weights and order; cells pair by them."
    )
    parallelism: int = Field(default=2, ge=1, description="Cells that are run at a time.")
    _base: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the study's files are."""
        return self.output / f"study-{self.name}"

    @property
    def shared_fields(self) -> dict[str, Any]:
        """The fields of `base`, with paths that hold anywhere."""
        return self._base

    @property
    def python_path(self) -> tuple[Path, ...]:
        """Folders that tasks and teachers are imported from: those of `base`."""
        return tuple(Path(entry) for entry in self._base.get("python_path", ()))

    def role_of(self, method: str) -> str:
        """Returns the role of the teacher that a method learns from."""
        return str(self.methods[method].get("against", DEFAULT_ROLE))

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        named = {
            "baselines": self.baselines,
            "ours": () if self.ours is None else (self.ours,),
            "controls": self.controls,
        }
        for field, names in named.items():
            _refuse_unknown(field, names, self.methods)
        if self.controls:
            _refuse_unknown("none", (self.none,), self.methods)
        for name, task in self.tasks.items():
            _refuse_unknown(f"tasks.{name}.teachers", tuple(task.teachers.values()), self.teachers)
        budgets = {f"tasks.{name}.labels": task.labels for name, task in self.tasks.items()}
        for field, values in {"seeds": self.seeds, **budgets}.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{field}: got {list(values)}, expected each once")
        return self

    @classmethod
    def load(cls, path: Path) -> StudyConfig:
        """Reads a YAML file; paths in it are relative to its folder, except `output`.

        Raises:
            OSError: the file can't be read.
            ValueError: it is not YAML, or a field is wrong; the message names the field.
        """
        return cls.of(read_fields(path), path.resolve().parent)

    @classmethod
    def of(cls, content: dict[str, Any], folder: Path) -> StudyConfig:
        """Builds a study of fields; errors and paths as in `load`.

        Args:
            content: the fields.
            folder: what relative paths start from.
        """
        study = cls.model_validate(content)
        base, base_folder = read_base(study.base, folder)
        study = study.model_copy(
            update={
                "output": study.output.resolve(),
                "teachers": {name: _resolved(each, folder) for name, each in study.teachers.items()},
                "tasks": {
                    name: task.model_copy(update={"changes": _fields(task.changes, folder)})
                    for name, task in study.tasks.items()
                },
                "students": {name: _fields(each, folder) for name, each in study.students.items()},
                "methods": {name: _fields(each, folder) for name, each in study.methods.items()},
            }
        )
        study._base = TrainConfig.resolve(nested(base), base_folder)  # noqa: SLF001 - of this class
        return study


def _fields(changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    return TrainConfig.resolve(nested(changes), folder)


def _resolved(teacher: TeacherSource, folder: Path) -> TeacherSource:
    if teacher.serve is None:
        return teacher
    return teacher.model_copy(update={"serve": (folder / teacher.serve).resolve()})


def _refuse_unknown(field: str, names: tuple[str, ...], known: dict[str, Any]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"{field}: got {unknown}, expected some of {sorted(known)}")
