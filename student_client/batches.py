"""Examples in batches: what the student reads, what the teacher reads, the labels.

The order of examples is a function of seed and epoch, so a resumed run sees the same batches, and workers
share each batch out, so that their number changes nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from student_client.preparation import IGNORED, SEQUENCES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from student_client.frames import TeacherInputs

__all__ = ["Batch", "ExampleSource", "Examples", "are_labels", "drawn_ahead", "share_of", "split_rows"]

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Batch:
    """Some examples.

    Attributes:
        student: the student's inputs by name, the batch first.
        teacher: what the teacher reads of the same examples.
        labels: [B], int64 classes or float32 values, or [B, L] classes of positions; for none -100, or NaN
            where they are values.
        told: [B, C], the outputs to distil from, where it is not the teacher that is asked for them.
    """

    student: dict[str, Tensor]
    teacher: TeacherInputs
    labels: Tensor
    told: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Returns the same with the student's inputs and labels on a device; the teacher's stay."""
        student = {name: tensor.to(device) for name, tensor in self.student.items()}
        told = None if self.told is None else self.told.to(device)
        return Batch(student, self.teacher, self.labels.to(device), told)

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
        told = None if self.told is None else self.told[start:end]
        return Batch(student, teacher, self.labels[start:end], told)

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
        return Batch(student, self.teacher, labels, self.told)


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
        told: the outputs to distil from, or None.
    """

    student: dict[str, Tensor]
    texts: tuple[str, ...] | None
    labels: Tensor
    teacher_names: tuple[str, ...] = ()
    told: Tensor | None = None

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
        told = None if self.told is None else self.told[rows]
        return Batch(student, teacher, self.labels[rows], told).trimmed()

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


def drawn_ahead(items: Iterable[ItemT]) -> Iterator[ItemT]:
    """Yields items, each once the next one was drawn: a teacher is asked while its last answer is awaited."""
    waiting: list[ItemT] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting


def split_rows(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Yields the numbers of rows in pieces of a size, the last one perhaps smaller."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def are_labels(labels: Tensor) -> Tensor:
    """Returns where there is a label, bool, of their shape: not `IGNORED`, or not NaN among numbers."""
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORED
