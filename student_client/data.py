"""Examples in batches: what the student reads, what the teacher reads, the labels.

The order of examples is a function of seed and epoch, so a resumed run sees the same batches, and workers
share each batch out, so that their number changes nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from student_client.preparation import SEQUENCES, Preparation, hash_words
from student_client.reading import DataError, read_table
from student_client.row_checks import check_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from student_client.data_config import DataConfig
    from student_client.frames import TeacherInputs
    from student_client.student_config import StudentConfig

__all__ = [
    "Batch",
    "DataError",
    "ExampleSource",
    "Examples",
    "Splits",
    "check_enough",
    "hash_words",
    "load_splits",
]


@dataclass(frozen=True)
class Batch:
    """Some examples.

    Attributes:
        student: the student's inputs by name, the batch first.
        teacher: what the teacher reads of the same examples.
        labels: [B], int64 classes or float32 values, or [B, L] classes of positions, -100 for none.
    """

    student: dict[str, Tensor]
    teacher: TeacherInputs
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """Returns the same with the student's inputs and labels on a device; the teacher's stay."""
        student = {name: tensor.to(device) for name, tensor in self.student.items()}
        return Batch(student, self.teacher, self.labels.to(device))

    def parts(self, num_parts: int) -> list[Batch]:
        """Returns the batch in so many parts, or as many as it has rows, of about the same size."""
        num_parts = min(num_parts, len(self.labels))
        return [self._rows(rows) for rows in torch.arange(len(self.labels)).tensor_split(num_parts)]

    def _rows(self, rows: Tensor) -> Batch:
        start, end = int(rows[0]), int(rows[-1]) + 1
        if end - start == len(self.labels):
            return self
        student = {name: tensor[start:end] for name, tensor in self.student.items()}
        teacher: TeacherInputs = (
            {name: tensor[start:end] for name, tensor in self.teacher.items()}
            if isinstance(self.teacher, dict)
            else list(self.teacher)[start:end]
        )
        return Batch(student, teacher, self.labels[start:end])

    def trimmed(self) -> Batch:
        """Returns the batch without positions that are padding in all of its rows."""
        mask = self.student.get("attention_mask")
        if mask is None:
            return self
        length = int(mask.sum(-1).max())
        student = {
            name: tensor[:, :length] if name in SEQUENCES else tensor for name, tensor in self.student.items()
        }
        labels = self.labels[:, :length] if self.labels.ndim > 1 else self.labels
        return Batch(student, self.teacher, labels)


class ExampleSource(Protocol):
    """Examples, in memory or streamed."""

    def __len__(self) -> int:
        """Returns their number."""
        ...

    def example(self, num_rows: int = 2) -> Batch:
        """Returns the first rows."""
        ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields all rows in order."""
        ...

    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
    ) -> Iterator[Batch]:
        """Yields a worker's share of every batch of an epoch.

        Where there are fewer rows than workers, those beyond them have one of another's, so that all take
        every step.

        Args:
            batch_size: examples of all workers together.
            seed: with `epoch`, decides the order.
            epoch: from 0.
            rank: the worker's number.
            world_size: workers.
            first_batch: how many batches are passed over.
        """
        ...


@dataclass(frozen=True)
class Examples:
    """Examples in memory; fields as in `Batch`, over all rows.

    Attributes:
        student: the student's inputs.
        texts: what the teacher reads, or None if it reads some of the student's inputs.
        labels: the labels.
        teacher_names: which inputs those are.
    """

    student: dict[str, Tensor]
    texts: tuple[str, ...] | None
    labels: Tensor
    teacher_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor) -> Batch:
        """Returns the rows with the given numbers, [B]."""
        student = {name: tensor[rows] for name, tensor in self.student.items()}
        teacher: TeacherInputs = (
            {name: student[name] for name in self.teacher_names}
            if self.texts is None
            else [self.texts[row] for row in rows.tolist()]
        )
        return Batch(student, teacher, self.labels[rows]).trimmed()

    def example(self, num_rows: int = 2) -> Batch:
        """Returns the first rows."""
        return self.select(torch.arange(min(num_rows, len(self))))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields all rows in order."""
        for rows in split_rows(torch.arange(len(self)), batch_size):
            yield self.select(rows)

    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
    ) -> Iterator[Batch]:
        """See `ExampleSource.shuffled`."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        batches = split_rows(torch.randperm(len(self), generator=generator), batch_size)
        for rows in itertools.islice(batches, first_batch, None):
            yield self.select(share_of(rows, rank, world_size))


def share_of(rows: Tensor, rank: int, world_size: int) -> Tensor:
    """Returns a worker's share of a batch's rows, see `ExampleSource.shuffled`."""
    return rows[rank % len(rows) :: world_size]


def split_rows(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Yields the numbers of rows in pieces of a size, the last one perhaps smaller."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@dataclass(frozen=True)
class Splits:
    """Training, validation and test examples; `classes` are the labels' names, empty for regression."""

    train: ExampleSource
    valid: ExampleSource
    test: ExampleSource
    classes: tuple[str, ...]


def load_splits(config: DataConfig, student: StudentConfig | None = None) -> Splits:
    """Reads the sources of a config and splits off what has no source of its own.

    Args:
        config: names sources and columns.
        student: says which tokenizer reads texts.

    Raises:
        DataError: a file, column or value is not what the config says.
    """
    if config.train is None:
        raise DataError("data.train: got null, expected a source, in the config or on the command line")
    if config.stream:
        from student_client.streaming import load_streams  # noqa: PLC0415 - needs Ray

        return load_streams(config, student)
    rows = _read(config.train, config, "train")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.split_seed)).tolist()
    num_valid = 0 if config.valid else round(config.valid_fraction * len(rows))
    num_test = 0 if config.test else round(config.test_fraction * len(rows))
    valid = _read(config.valid, config, "valid") if config.valid else [rows[i] for i in order[:num_valid]]
    test = (
        _read(config.test, config, "test") if config.test else [rows[i] for i in order[num_valid:][:num_test]]
    )
    train = [rows[i] for i in order[num_valid + num_test :]]
    for name, part in (("train", train), ("valid", valid), ("test", test)):
        if not part:
            raise DataError(f"data.{name}: got no examples ({len(rows)} in {config.train}), expected some")
    preparation = Preparation(config, student, classes_of([row[config.label] for row in rows], config))
    parts = [examples_of(part, preparation) for part in (train, valid, test)]
    return Splits(parts[0], parts[1], parts[2], preparation.classes)


def classes_of(labels: Sequence[Any], config: DataConfig) -> tuple[str, ...]:
    """Returns the names of the classes among some labels, or those that the config says."""
    if config.task == "regression":
        return ()
    if config.classes is not None:
        return config.classes
    if config.task == "tokens":
        labels = [tag for tags in labels for tag in tags]
    return tuple(sorted({str(label) for label in labels}))


def _read(source: str, config: DataConfig, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(source, config, split).to_pylist()
    check_values(source, rows, config)
    return rows


def read_examples(source: str, preparation: Preparation, split: str) -> Examples:
    """Reads a source whole.

    Args:
        source: a file, a folder or a Hugging Face data set.
        preparation: turns rows into inputs.
        split: of a Hugging Face data set that has several.

    Raises:
        DataError: it is not what the config says.
    """
    rows = _read(source, preparation.config, split)
    if not rows:
        raise DataError(f"data.{split}: got no examples in {source}, expected some")
    return examples_of(rows, preparation)


def examples_of(rows: Sequence[dict[str, Any]], preparation: Preparation) -> Examples:
    """Returns rows, values by column each, as examples."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    student, labels = preparation.prepare(columns)
    texts = preparation.teacher_texts(columns)
    return Examples(student, None if texts is None else tuple(texts), labels, preparation.teacher_names)


def check_enough(num_examples: int, num_workers: int) -> None:
    """Makes sure that there is an example for each worker.

    Raises:
        ValueError: there is not.
    """
    if num_examples < num_workers:
        raise ValueError(
            f"data.train: got {num_examples} examples, expected at least {num_workers}, one a worker"
        )
