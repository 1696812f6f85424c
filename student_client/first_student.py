"""A first student that learns what a teacher says of rows without labels, and then has a say in it.

Student and teacher read the same rows differently, and err differently: mixed, they are better than either
(co-training, Blum & Mitchell 1998; born-again networks, Furlanello et al., arXiv 1805.04770). The first
student sees no labelled row, so what it says of those gives no label away: what is corrected next, by a
conversation, is wrong there as often as anywhere.

Shapes: N rows, C outputs.
"""

from __future__ import annotations

import copy
import math
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

__all__ = ["mixed_with_student"]

_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
_BATCH_SIZE = 512


def mixed_with_student(
    config: TrainConfig,
    parts: Sequence[Examples],
    outputs: list[Tensor],
    num_classes: int,
    activity: Activity,
) -> tuple[list[Tensor], dict[str, Any]]:
    """Mixes outputs with those of a student that learnt them of unlabelled rows.

    Both have a weight, chosen on the validation rows; it may be 0.

    Args:
        config: of the run, whose student it is like.
        parts: training, validation and test rows.
        outputs: of the same rows, [N, C] each.
        num_classes: of the data; 0 for regression.
        activity: is told.

    Returns:
        The mixed outputs, [N, C] each, and facts for the run's result; the same outputs and nothing if there
        is no row without a label.
    """
    rows = (~are_labels(parts[0].labels)).nonzero()[:, 0]
    if not len(rows):
        return outputs, {}
    with torch.random.fork_rng(devices=[]):  # the student's own draws are those of any other run
        torch.manual_seed(config.seed + 1)  # and its first weights others than the first student's
        student = build_student(
            config.student,
            num_classes=num_classes,
            task=config.data.task,
            python_path=config.python_path,
        )
        _train(student, config, parts, outputs[0], rows, activity)
    said = [_outputs(student, each).reshape(known.shape) for each, known in zip(parts, outputs, strict=True)]
    weights = _weights(outputs[1], said[1], parts[1].labels)
    mixed = [weights[0] * known + weights[1] * own for known, own in zip(outputs, said, strict=True)]
    return mixed, {
        "valid": worth_of(mixed[1], parts[1].labels),
        "test": worth_of(mixed[2], parts[2].labels),
        "weight": weights[1],
    }


def _train(
    student: nn.Module,
    config: TrainConfig,
    parts: Sequence[Examples],
    told: Tensor,
    rows: Tensor,
    activity: Activity,
) -> None:
    """Leaves the student as it was best, by loss, on the validation rows."""
    settings = config.optimizer
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    num_steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    schedule = build_schedule(optimizer, settings, num_steps)
    best = math.inf, copy.deepcopy(student.state_dict())
    for epoch in range(1, config.epochs + 1):
        with activity.now(f"training a first student, epoch {epoch} of {config.epochs}"):
            student.train()
            order = rows[torch.randperm(len(rows))]
            for some in split_rows(order, config.batch_size):
                optimizer.zero_grad()
                logits = logits_of(student(**parts[0].select(some).student))
                loss = losses.logits_distillation(logits, told[some], config.losses.temperature)
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
    """Returns the student's outputs of all rows; it is alone."""
    student.eval()
    return torch.cat([logits_of(student(**batch.student)) for batch in examples.batches(_BATCH_SIZE)])


def _weights(known: Tensor, own: Tensor, labels: Tensor) -> tuple[float, float]:
    """Returns what both outputs, [N, C], count for: numbers are averaged, logits may be scaled as well."""
    choices = [(known_weight, own_weight) for known_weight in _WEIGHTS for own_weight in _WEIGHTS]
    if labels.is_floating_point():
        choices = [each for each in choices if sum(each) == 1]
    return min(choices, key=lambda each: loss_of(each[0] * known + each[1] * own, labels).item())
