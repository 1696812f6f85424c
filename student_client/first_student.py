"""A first student that learns what a teacher says of rows without labels, and then has a say in it.

Student and teacher read the same rows differently, and err differently: mixed, they are better than either
(co-training, Blum & Mitchell 1998; born-again networks, Furlanello et al., arXiv 1805.04770). The first
student sees no labelled row, so that what it says of those is not their labels, and leaves a conversation
something to correct.

Shapes: N rows, C outputs, 1 for numbers.
"""

from __future__ import annotations

import copy
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from student_client import losses
from student_client.batches import Examples, are_labels, split_rows
from student_client.optimization import build_schedule
from student_client.probe import loss_of, worth_of
from student_client.students import build_student, logits_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from student_client.activity import Activity
    from student_client.config import TrainConfig

__all__ = ["choose_weights", "mixed_with_student"]

_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
_BATCH_SIZE = 512
_SEEDS_OF_FIRST_STUDENTS = 1_000_003, 500_009  # no seed of a student's own


def mixed_with_student(
    config: TrainConfig,
    parts: Sequence[Examples],
    outputs: list[Tensor],
    num_classes: int,
    activity: Activity,
) -> tuple[list[Tensor], dict[str, Any]]:
    """Mixes outputs with those of a student that learnt them of unlabelled rows.

    Both have a weight, chosen on the validation rows; one of them may be 0.

    Args:
        config: of the run, whose student it is like.
        parts: training, validation and test rows; the last ones only to say what the mixture is worth.
        outputs: of the same rows, [N, C] each.
        num_classes: of the data; 0 for regression.
        activity: is told.

    Returns:
        The mixed outputs, [N, C] each, and facts for the run's result; the same outputs and nothing if there
        is no row without a label.

    Raises:
        ValueError: the student can't be built, or what it was told, or says, is not finite.
    """
    if are_labels(parts[0].labels).all():
        return outputs, {}
    begun_s = time.perf_counter()
    said = _taught(config, parts, outputs[0], num_classes, activity)
    said = [own.reshape(known.shape) for own, known in zip(said, outputs, strict=True)]
    weights = choose_weights(outputs[1], said[1], parts[1].labels)
    mixed = [weights[0] * known + weights[1] * own for known, own in zip(outputs, said, strict=True)]
    return mixed, {
        "valid": worth_of(mixed[1], parts[1].labels),
        "test": worth_of(mixed[2], parts[2].labels),
        "weights": list(weights),
        "seconds": round(time.perf_counter() - begun_s, 3),
    }


def choose_weights(known: Tensor, own: Tensor, labels: Tensor) -> tuple[float, float]:
    """Returns what two outputs of the same rows count for, chosen by the loss of their weighted sum.

    Numbers are averaged: their weights add up to 1. The sum of logits may be sharper or flatter than both.

    Args:
        known: [N, C].
        own: [N, C].
        labels: [N], int64 classes or float32 numbers.

    Raises:
        ValueError: an output is not finite.
    """
    for what, values in (("was told", known), ("says", own)):
        if not values.isfinite().all():
            raise ValueError(
                f"lessons.first_student: what it {what} holds a number that is not finite; lower the "
                "learning rate"
            )
    choices = [(first, second) for first in _WEIGHTS for second in _WEIGHTS if first + second > 0]
    if labels.is_floating_point():
        choices = [each for each in choices if sum(each) == 1]
    return min(choices, key=lambda each: loss_of(each[0] * known + each[1] * own, labels).item())


def _taught(
    config: TrainConfig, parts: Sequence[Examples], told: Tensor, num_classes: int, activity: Activity
) -> list[Tensor]:
    """Returns the outputs, for the rows of all parts, of a student that was told of the unlabelled ones."""
    device = torch.device("cuda" if config.gpus_per_worker and torch.cuda.is_available() else "cpu")
    factor, offset = _SEEDS_OF_FIRST_STUDENTS
    with torch.random.fork_rng(devices=[]):  # the student's own draws are those of any other run
        torch.manual_seed(config.seed * factor + offset)
        student = build_student(
            config.student,
            num_classes=num_classes,
            task=config.data.task,
            python_path=config.python_path,
        ).to(device)
        _train(student, config, parts, told, activity)
    return [_outputs(student, each) for each in parts]


def _train(
    student: nn.Module, config: TrainConfig, parts: Sequence[Examples], told: Tensor, activity: Activity
) -> None:
    """Leaves the student as it was best, by loss, on the validation rows."""
    device = next(student.parameters()).device
    rows = (~are_labels(parts[0].labels)).nonzero()[:, 0]
    settings = config.optimizer
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = build_schedule(optimizer, settings, config.epochs * math.ceil(len(rows) / config.batch_size))
    best = math.inf, copy.deepcopy(student.state_dict())
    for epoch in range(1, config.epochs + 1):
        with activity.now(f"training a first student, epoch {epoch} of {config.epochs}"):
            student.train()
            for some in split_rows(rows[torch.randperm(len(rows))], config.batch_size):
                optimizer.zero_grad()
                logits = logits_of(student(**parts[0].select(some).to(device).student))
                temperature = config.losses.temperature
                loss = losses.logits_distillation(logits, told[some].to(device), temperature)
                torch.autograd.backward(loss)
                if settings.max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(student.parameters(), settings.max_grad_norm)
                optimizer.step()
                schedule.step()
            said = _outputs(student, parts[1])
            value = loss_of(said.reshape(len(said), -1), parts[1].labels).item()
        if value < best[0]:
            best = value, copy.deepcopy(student.state_dict())
    student.load_state_dict(best[1])


@torch.no_grad()
def _outputs(student: nn.Module, examples: Examples) -> Tensor:
    """Returns the student's outputs of all rows, on the CPU; it is alone."""
    student.eval()
    device = next(student.parameters()).device
    batches = (batch.to(device) for batch in examples.batches(_BATCH_SIZE))
    return torch.cat([logits_of(student(**batch.student)).float().cpu() for batch in batches])
