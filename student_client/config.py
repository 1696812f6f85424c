"""The configuration of a training run, validated once.

One YAML file says what is trained, on what data, by which losses and against which teacher.
"""

from __future__ import annotations

import copy
import functools
import operator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from preceptor.settings import read_fields
from student_client.data_config import SOURCES, DataConfig, resolve_source
from student_client.lessons_config import LessonsConfig
from student_client.options import ClientOptions, parse_address
from student_client.student_config import StudentConfig
from student_client.talk_config import ConfigSection, LossWeights, TalkConfig, check_together
from student_client.tracking import TrackingConfig

__all__ = [
    "DataConfig",
    "LessonsConfig",
    "LossWeights",
    "OptimizerConfig",
    "StudentConfig",
    "TalkConfig",
    "TeacherConfig",
    "TrainConfig",
    "put",
]

# What a student learns by from a teacher where nothing else is said; docs/method.md says how it was chosen.
_RECIPE = {"task": 0.3, "kd": 1.0, "kd_source": "lessons"}


class TeacherConfig(ConfigSection):
    """Where the teacher is."""

    address: str = Field(description="`preceptor://HOST:PORT` of any replica, or of the directory.")
    tenant: str = Field(
        default="", description="The team; the service is shared fairly between teams. Empty: the run's name."
    )
    options: ClientOptions = Field(default_factory=ClientOptions, description="Deadlines and limits.")

    @model_validator(mode="after")
    def _check_address(self) -> Self:
        self.options.at(parse_address(self.address))
        return self


class OptimizerConfig(ConfigSection):
    """AdamW and its schedule."""

    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate.")
    codec_lr: float | None = Field(default=None, gt=0, description="Of the codec; null: as `lr`.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay.")
    warmup_steps: int = Field(default=0, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["constant", "cosine"] = Field(default="constant", description="After the warm-up.")
    max_grad_norm: float | None = Field(default=None, gt=0, description="Gradients are clipped to it.")


class TrainConfig(ConfigSection):
    """One training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run and its folder.")
    output: Path = Field(default=Path("out"), description="Where runs are kept; shared by all nodes.")
    seed: int = Field(default=0, ge=0, description="Of initial weights, order of examples and dropout.")
    student: StudentConfig = Field(description="What is trained.")
    data: DataConfig = Field(description="On what.")
    teacher: TeacherConfig | None = Field(default=None, description="Against which teacher; null: alone.")
    talk: TalkConfig = Field(default_factory=TalkConfig, description="How it talks.")
    losses: LossWeights = Field(
        default_factory=LossWeights,
        description="What is minimised; where there is a teacher and nothing is said, the student is taught "
        "by lessons, which did best in trials on validation rows (docs/method.md).",
    )
    lessons: LessonsConfig = Field(
        default_factory=LessonsConfig,
        description="How a conversation is trained first, where losses.kd_source is lessons.",
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="By what.")
    epochs: int = Field(default=10, ge=1, description="Passes over the training examples.")
    batch_size: int = Field(default=32, ge=1, description="Examples a step, of all workers together.")
    accumulate: int = Field(
        default=1, ge=1, description="Parts that a worker computes its share of a batch in, to save memory."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="In which the student computes (autocast); weights are float32."
    )
    keep: Literal["best", "last"] = Field(default="best", description="Which epoch's weights are the result.")
    checkpoint_every_epochs: int = Field(default=5, ge=1, description="Epochs between checkpoints.")
    checkpoint_every_steps: int | None = Field(
        default=None, ge=1, description="Steps between more checkpoints, for long epochs; null: none."
    )
    log_every_steps: int = Field(default=20, ge=1, description="Steps between lines of `metrics.jsonl`.")
    tracking: TrackingConfig = Field(
        default_factory=TrackingConfig, description="Where metrics go besides the run's folder."
    )
    num_workers: int | tuple[int, int] = Field(
        default=1,
        description="Ray Train workers (data parallel), or the fewest and the most of an elastic run.",
    )
    peer_timeout_s: int = Field(
        default=300,
        ge=1,
        description="Seconds that a worker waits for the others; longer than the teacher's deadline.",
    )
    cpus_per_worker: float = Field(default=1.0, gt=0, description="Ray's logical CPUs a worker.")
    gpus_per_worker: float = Field(
        default=0,
        ge=0,
        description="GPUs a worker; with a share of one, several students (or workers) share a GPU.",
    )
    start_timeout_s: int = Field(
        default=1800,
        ge=1,
        description="Seconds to wait until Ray has room for the workers; each of max_failures + 1 times.",
    )
    num_threads: int = Field(default=1, ge=1, description="Torch threads a worker.")
    max_failures: int = Field(default=2, ge=0, description="Lost workers after which the run gives up.")
    python_path: tuple[Path, ...] = Field(default=(), description="Folders to import `factory` from.")

    @model_validator(mode="before")
    @classmethod
    def _learn_from_the_teacher(cls, data: object) -> object:
        """Fills in what a run minimises if it has a teacher and nobody said what to learn from it."""
        if not isinstance(data, dict) or data.get("teacher") is None:
            return data
        losses = data.get("losses", {})
        if "losses" in data and (not isinstance(losses, dict) or set(losses) != {"temperature"}):
            return data  # a weight is named, so all are meant
        if _said(data, "data", "stream") or _said(data, "data", "task") == "tokens":
            return data  # lessons need rows that are kept, each with a label of its own
        if _said(data, "talk", "swap_probability"):
            return data  # the teacher's layers are what it learns by
        return {**data, "losses": {**_RECIPE, **losses}}

    @model_validator(mode="after")
    def _check_needs(self) -> Self:
        check_together(self.losses, self.talk)
        if self.needs_teacher and self.teacher is None:
            raise ValueError("teacher: got null, expected an address for the losses that were given a weight")
        if self.talks and not (self.student.lower and self.student.upper):
            raise ValueError("student.lower, student.upper: got null, expected module paths to talk about")
        if self.losses.attention and not (self.student.lower and self.student.upper):
            raise ValueError("student.lower, student.upper: got null, expected both for losses.attention")
        if self.losses.reads_states and not self.student.upper:
            raise ValueError("student.upper: got null, expected a module path for losses.hint and relation")
        if self.data.task == "tokens" and (self.losses.kd or self.losses.hint or self.losses.relation):
            raise ValueError("losses.kd, hint, relation: got a weight, expected 0: data.task is tokens")
        if self.losses.kd and self.losses.kd_source != "head" and self.data.stream:
            raise ValueError(
                f"losses.kd_source: got {self.losses.kd_source} with data.stream, expected head: "
                "rows are kept"
            )
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        fewest, most = self.worker_range
        if not 1 <= fewest <= most:
            raise ValueError(
                f"num_workers: got {self.num_workers}, expected [fewest, most] or a number, from 1"
            )
        if self.batch_size < most:
            raise ValueError(f"batch_size: got {self.batch_size}, expected at least num_workers {most}")
        if self.needs_teacher and self.teacher and most > 1:
            deadline_s = self.teacher.options.deadline_s
            if self.peer_timeout_s <= deadline_s:
                raise ValueError(
                    f"peer_timeout_s: got {self.peer_timeout_s}, expected over {deadline_s:g}, as long as "
                    "another worker may wait for the teacher (teacher.options.deadline_s)"
                )
        return self

    @property
    def talks(self) -> bool:
        """Whether messages are exchanged."""
        return self.losses.talks or self.talk.swap_probability > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is needed at all."""
        return self.talks or self.losses.needs_teacher

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        if isinstance(self.num_workers, int):
            return self.num_workers, self.num_workers
        return self.num_workers

    @property
    def folder(self) -> Path:
        """Where the run's files are."""
        return self.output / self.name

    @classmethod
    def load(cls, path: Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
        """Reads a YAML file; relative paths in it are relative to its folder, except `output`.

        Args:
            path: the file.
            overrides: values by dotted name that replace those of the file, for example
                `{"teacher.address": "preceptor://127.0.0.1:41500"}`; relative paths in them are relative to
                the current folder: they are typed in a shell.

        Raises:
            OSError: the file can't be read.
            ValueError: it is not YAML, or a field is wrong; the message names the field.
        """
        data = cls.resolve(read_fields(path), path.resolve().parent)
        for name, value in (overrides or {}).items():
            keys = name.split(".")
            change: dict[str, Any] = {}
            put(change, keys, value)
            put(data, keys, functools.reduce(operator.getitem, keys, cls.resolve(change, Path.cwd())))
        return cls.model_validate(data)

    @staticmethod
    def resolve(data: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Returns the fields of a run, or some of them, with paths relative to a folder made absolute."""
        data = copy.deepcopy(data)
        _resolve_paths(data, folder)
        return data


def _said(data: dict[str, Any], section: str, name: str) -> object:
    """Returns a field of a section, of fields or of what they make already; None if nobody said."""
    fields = data.get(section)
    return fields.get(name) if isinstance(fields, dict) else getattr(fields, name, None)


def _section(data: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Returns nested fields; none if they are not there, or are something else, which validation tells of."""
    for key in keys:
        nested = data.get(key)
        if not isinstance(nested, dict):
            return {}
        data = nested
    return data


def _resolve_paths(data: dict[str, Any], folder: Path) -> None:
    for section, names in (("data", SOURCES), ("student", ("pretrained", "tokenizer"))):
        fields = _section(data, section)
        for name in names:
            if fields.get(name) is not None:
                fields[name] = resolve_source(str(fields[name]), folder)
    options = _section(data, "teacher", "options")
    if options.get("token_file") is not None:
        options["token_file"] = folder / str(options["token_file"])
    tls = _section(data, "teacher", "options", "tls")
    for name in ("ca_file", "certificate_file", "key_file"):
        if tls.get(name) is not None:
            tls[name] = folder / str(tls[name])
    if isinstance(data.get("python_path"), list):  # anything else is told of by its field
        data["python_path"] = [folder / str(entry) for entry in data["python_path"]]


def put(data: dict[str, Any], keys: list[str], value: object) -> None:
    """Sets a value in nested fields, making what is missing on the way to it."""
    for key in keys[:-1]:
        nested = data.get(key)
        data[key] = nested if isinstance(nested, dict) else {}
        data = data[key]
    data[keys[-1]] = value
