"""The small student of the benchmarks and the batches it reads.

Shapes: B batch, L positions, D the student's width.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.toy_teacher import TransformerBlock

if TYPE_CHECKING:
    from student_client.frames import TeacherInputs

__all__ = ["Batch", "SmallStudent", "make_batches"]

_SENTENCE = (
    "a river runs by the old stone mill where two tired farmers count sacks of flour while dogs sleep under "
    "warm wooden carts and children throw small round pebbles at green glass bottles set along one low wall"
)
_WORDS = _SENTENCE.split()
_NUM_CLASSES = 3


@dataclass(frozen=True)
class Batch:
    """What student and teacher read.

    Attributes:
        ids: the words as the student reads them, 0 for padding, [B, L], int64.
        mask: [B, L], bool.
        labels: [B], int64.
        inputs: the same rows for the teacher.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    inputs: TeacherInputs


def make_batches(
    num_batches: int, num_rows: int, lengths: tuple[int, int], *, as_tensors: bool, seed: int
) -> list[Batch]:
    """Returns batches of random words.

    Args:
        num_batches: how many.
        num_rows: B.
        lengths: the smallest and the largest number of words of a row.
        as_tensors: whether the teacher reads `ids`; else it reads texts.
        seed: of the random numbers.
    """
    rng = random.Random(seed)
    batches = []
    for _ in range(num_batches):
        rows = [[rng.randrange(len(_WORDS)) for _ in range(rng.randint(*lengths))] for _ in range(num_rows)]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[word + 1 for word in row] + [0] * (longest - len(row)) for row in rows])
        texts = [" ".join(_WORDS[word] for word in row) for row in rows]
        labels = torch.tensor([sum(row) % _NUM_CLASSES for row in rows])
        batches.append(Batch(ids, ids != 0, labels, {"ids": ids} if as_tensors else texts))
    return batches


class SmallStudent(nn.Module):
    """A transformer of two blocks that talks after the first one; classifies words."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(len(_WORDS) + 1, width)
        self.lower = TransformerBlock(width, num_heads)
        self.upper = TransformerBlock(width, num_heads)
        self.head = nn.Linear(width, _NUM_CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns lower states [B, L, D], upper states [B, L, D] and logits [B, classes]."""
        lower = self.lower(self.words(ids), mask)
        upper = self.upper(lower, mask)
        pooled = (upper * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return lower, upper, self.head(pooled)
