"""Tables to batches: what the student reads, what the teacher reads, the labels.

Reads CSV with a header. A text becomes hashed words for the student, and stays a text for the teacher, which
has a tokenizer of its own. The order of examples is a function of seed and epoch, so a resumed run sees the
same batches.
"""

from __future__ import annotations

import csv
import math
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from student_client.config import DataConfig
    from student_client.frames import TeacherInputs

__all__ = ["Batch", "DataError", "Examples", "Splits", "hash_words", "load_splits"]

_WORD = re.compile(r"\w+|[^\w\s]")
_DTYPES = {"int64": torch.int64, "float32": torch.float32}


class DataError(ValueError):
    """A table is not what the config says; names the file, the column and the row."""


@dataclass(frozen=True)
class Batch:
    """Some examples.

    Attributes:
        student: the student's inputs by name, the batch first.
        teacher: what the teacher reads of the same examples.
        labels: [B], int64 classes or float32 values.
    """

    student: dict[str, Tensor]
    teacher: TeacherInputs
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """Returns the same with the student's inputs and labels on a device; the teacher's stay."""
        student = {name: tensor.to(device) for name, tensor in self.student.items()}
        return Batch(student, self.teacher, self.labels.to(device))


@dataclass(frozen=True)
class Examples:
    """A table in memory; fields as in `Batch`, over all its rows."""

    student: dict[str, Tensor]
    texts: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor) -> Batch:
        """Returns the rows with the given numbers, [B]."""
        student = {name: tensor[rows] for name, tensor in self.student.items()}
        if not self.texts:
            return Batch(student, student, self.labels[rows])
        length = int(student["attention_mask"].sum(-1).max())
        student = {name: tensor[:, :length] for name, tensor in student.items()}
        return Batch(student, [self.texts[row] for row in rows.tolist()], self.labels[rows])

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields all rows in order."""
        for rows in _split(torch.arange(len(self)), batch_size):
            yield self.select(rows)

    def shuffled(
        self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """Yields a worker's share of every batch of an epoch; a batch smaller than the workers is left out.

        Args:
            batch_size: examples of all workers together.
            seed: with `epoch`, decides the order.
            epoch: from 0.
            rank: the worker's number.
            world_size: workers.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for rows in _split(torch.randperm(len(self), generator=generator), batch_size):
            if len(rows) >= world_size:
                yield self.select(rows[rank::world_size])


def _split(rows: Tensor, size: int) -> Iterator[Tensor]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@dataclass(frozen=True)
class Splits:
    """Training, validation and test examples; `classes` are the labels' names, empty for regression."""

    train: Examples
    valid: Examples
    test: Examples
    classes: tuple[str, ...]


def load_splits(config: DataConfig, seed: int) -> Splits:
    """Reads the tables of a config and splits off what has no table of its own.

    Raises:
        DataError: a file, column or value is not what the config says.
    """
    if config.train is None:
        raise DataError("data.train: got null, expected a CSV file, in the config or on the command line")
    rows = _read(config.train, config)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    num_valid = 0 if config.valid else round(config.valid_fraction * len(rows))
    num_test = 0 if config.test else round(config.test_fraction * len(rows))
    valid = _read(config.valid, config) if config.valid else [rows[i] for i in order[:num_valid]]
    test = _read(config.test, config) if config.test else [rows[i] for i in order[num_valid:][:num_test]]
    train = [rows[i] for i in order[num_valid + num_test :]]
    for name, part in (("train", train), ("valid", valid), ("test", test)):
        if not part:
            raise DataError(f"data.{name}: got no examples ({len(rows)} in {config.train}), expected some")
    classes = sorted({row[config.label] for row in rows}) if config.task == "classification" else []
    parts = [_examples(part, config, classes) for part in (train, valid, test)]
    return Splits(parts[0], parts[1], parts[2], tuple(classes))


def hash_words(text: str, vocab_size: int, max_len: int) -> list[int]:
    """Returns the buckets, 1 to vocab_size - 1, of a text's first words and punctuation marks."""
    words = _WORD.findall(text.lower())[:max_len]
    return [1 + zlib.crc32(word.encode()) % (vocab_size - 1) for word in words] or [1]


def _read(path: Path, config: DataConfig) -> list[dict[str, str]]:
    columns = [config.label, *([config.text] if config.text else config.features)]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: got columns {reader.fieldnames}, expected {missing} too")
            rows = [{column: row[column] for column in columns} for row in reader]
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: got bytes that are not UTF-8 at {error.start}, expected UTF-8") from None
    for number, row in enumerate(rows, start=2):
        empty = [column for column, value in row.items() if value is None or not value.strip()]
        if empty:
            raise DataError(f"{path}, line {number}: got no value in {empty}, expected one")
    return rows


def _examples(rows: Sequence[dict[str, str]], config: DataConfig, classes: list[str]) -> Examples:
    texts = tuple(row[config.text] for row in rows) if config.text else ()
    if config.text:
        student = _hashed(texts, config)
    else:
        student = {name: _numbers(rows, name, _DTYPES[kind]) for name, kind in config.features.items()}
    if config.task == "regression":
        return Examples(student, texts, _numbers(rows, config.label, torch.float32))
    number_of = {name: number for number, name in enumerate(classes)}
    unknown = sorted({row[config.label] for row in rows} - set(number_of))
    if unknown:
        raise DataError(
            f"{config.label}: got classes {unknown[:5]} that the training table lacks, expected none"
        )
    return Examples(student, texts, torch.tensor([number_of[row[config.label]] for row in rows]))


def _hashed(texts: Sequence[str], config: DataConfig) -> dict[str, Tensor]:
    hashed = [hash_words(text, config.vocab_size, config.max_len) for text in texts]
    length = max(map(len, hashed))
    ids = torch.zeros(len(hashed), length, dtype=torch.int64)
    for row, words in enumerate(hashed):
        ids[row, : len(words)] = torch.tensor(words)
    return {"input_ids": ids, "attention_mask": ids != 0}


def _numbers(rows: Sequence[dict[str, str]], column: str, dtype: torch.dtype) -> Tensor:
    try:
        convert = int if dtype is torch.int64 else _finite
        return torch.tensor([convert(row[column]) for row in rows], dtype=dtype)
    except ValueError as error:
        raise DataError(f"column {column!r}: {error}; expected numbers") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"got {text!r}")
    return value
