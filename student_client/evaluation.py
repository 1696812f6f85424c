"""What a student is worth by itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from student_client.objective import num_tokens

if TYPE_CHECKING:
    from student_client.batches import ExampleSource
    from student_client.objective import Objective

__all__ = ["evaluate"]

_BATCH_SIZE = 512


@torch.no_grad()
def evaluate(objective: Objective, examples: ExampleSource, metric: str, device: torch.device) -> float:
    """Returns the student's accuracy (0 to 1) or root mean squared error, over rows or labelled positions.

    Args:
        objective: holds the student, which is alone here.
        examples: what it is judged by.
        metric: "accuracy" or "rmse".
        device: the student's.
    """
    objective.eval()
    total, count = 0.0, 0
    for batch in examples.batches(_BATCH_SIZE):
        moved = batch.to(device)
        logits = objective.predict(moved)
        if metric == "rmse":
            total += (logits.reshape(moved.labels.shape) - moved.labels).pow(2).sum().item()
        else:
            total += (logits.argmax(-1) == moved.labels).sum().item()  # never -100
        count += num_tokens(moved.labels)
    mean = total / count if count else math.nan
    return math.sqrt(mean) if metric == "rmse" else mean
