"""Draws a student's share of a training set and writes the tables that it trains on.

This module knows no data set.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from student_client.whole_files import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = ["MAX_VALID", "Share", "draw_share", "write_table", "write_tables"]

MAX_VALID = 500
_VALID_FRACTION_OF_ALL = 0.1


@dataclass(frozen=True)
class Share:
    """Numbers of a training set's rows, each int64; no row is in two of them.

    Attributes:
        train: those whose labels are learnt.
        valid: those by whose labels an epoch is chosen.
        unlabelled: all others, or some, in the set's order.
    """

    train: Tensor
    valid: Tensor
    unlabelled: Tensor


def draw_share(
    labels: Sequence[str], num_labels: int | None, *, seed: int, num_unlabelled: int | None = None
) -> Share:
    """Draws rows at random, of which one of each class is learnt: a student could not name another.

    Args:
        labels: the class of each row.
        num_labels: rows to learn from; as many others, at most 500, are to validate. None: a tenth, at most
            500, is to validate, and all others are learnt.
        seed: decides the draw.
        num_unlabelled: at most so many rows are unlabelled, and what is left is no one's; None: all are.

    Raises:
        ValueError: there are fewer rows, or more classes.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    first = {labels[row]: row for row in reversed(order)}  # of each class
    order = [*first.values(), *(row for row in order if first[labels[row]] != row)]
    if num_labels is None:
        num_valid = min(MAX_VALID, int(len(labels) * _VALID_FRACTION_OF_ALL))
        num_labels = len(labels) - num_valid
    else:
        num_valid = min(MAX_VALID, num_labels)
    if not len(first) <= num_labels <= len(labels) - num_valid:
        raise ValueError(
            f"num_labels: got {num_labels}, expected from {len(first)}, the classes, "
            f"to {len(labels) - num_valid}, the rows less {num_valid} to validate"
        )
    train, valid, rest = torch.tensor(order).tensor_split([num_labels, num_labels + num_valid])
    return Share(train, valid, rest[:num_unlabelled].sort().values)


def write_tables(
    folder: Path,
    share: Share,
    columns: Mapping[str, Sequence[Any]],
    test: Mapping[str, Sequence[Any]],
    *,
    label: str = "label",
) -> None:
    """Writes `train.csv`, `valid.csv`, `test.csv` and, if there are such rows, `unlabelled.csv`.

    Args:
        folder: made when absent; files of these names are replaced.
        share: rows of the training set.
        columns: of the training set, by name.
        test: the columns of the test set.
        label: the column that `unlabelled.csv` lacks.
    """

    def of(rows: Tensor, *, labelled: bool = True) -> dict[str, list[Any]]:
        return {
            name: [values[row] for row in rows.tolist()]
            for name, values in columns.items()
            if labelled or name != label
        }

    write_table(folder / "train.csv", of(share.train))
    write_table(folder / "valid.csv", of(share.valid))
    write_table(folder / "test.csv", test)
    (folder / "unlabelled.csv").unlink(missing_ok=True)
    if len(share.unlabelled):
        write_table(folder / "unlabelled.csv", of(share.unlabelled, labelled=False))


def write_table(path: Path, columns: Mapping[str, Iterable[Any]]) -> None:
    """Writes columns of one length as CSV with a header; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
