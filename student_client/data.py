"""Reads what a run's config names: examples to train on, to validate with and to test on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from student_client.batches import Batch, Examples, ExampleSource
from student_client.preparation import Preparation, hash_words
from student_client.reading import DataError, read_table
from student_client.row_checks import check_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from student_client.data_config import DataConfig
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
class Splits:
    """Training, validation and test examples; `classes` are the labels' names, empty for regression.

    The last `num_unlabelled` of the training examples have no label.
    """

    train: ExampleSource
    valid: ExampleSource
    test: ExampleSource
    classes: tuple[str, ...]
    num_unlabelled: int = 0


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
    unlabelled = _read_unlabelled(config.unlabelled, config) if config.unlabelled else []
    parts = [examples_of(part, preparation) for part in (train + unlabelled, valid, test)]
    return Splits(parts[0], parts[1], parts[2], preparation.classes, len(unlabelled))


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


def _read_unlabelled(source: str, config: DataConfig) -> list[dict[str, Any]]:
    """Returns rows whose label is None, whether or not the source has a column of that name."""
    table = read_table(source, config, "unlabelled", config.input_columns)
    rows: list[dict[str, Any]] = table.to_pylist()
    check_values(source, rows, config, labelled=False)
    if not rows:
        raise DataError(f"data.unlabelled: got no examples in {source}, expected some")
    return [{**row, config.label: None} for row in rows]


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
