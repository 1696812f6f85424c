"""Trains the digits' teacher, once, on the teacher's own images, in many domains but the students'.

A foundation is one for what it has not seen. So it learns the digits of images that are turned, shifted,
faded and partly inverted, and to draw what it sees from the states that a probe reads: these then keep what
another task may need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from examples.study.digits import SIZE, load_digits
from examples.study.many_domains import in_some_domain
from examples.study.models import DigitTeacher

if TYPE_CHECKING:
    from torch import Tensor

    from examples.study.digits import Digits

__all__ = ["as_pixel_values", "train_digit_teacher"]

_NUM_EPOCHS = 230
_BATCH_SIZE = 128
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 0.05
_MAX_GRAD_NORM = 1.0
_DRAWING_WEIGHT = 20.0  # of a squared error of some hundredths, beside the cross entropy


def as_pixel_values(pixels: Tensor) -> Tensor:
    """Returns images [N, 8, 8] as models read them, [N, 3, 8, 8]."""
    return pixels[:, None].expand(-1, 3, -1, -1)


def train_digit_teacher(seed: int, *, num_epochs: int = _NUM_EPOCHS) -> DigitTeacher:
    """Trains the teacher and returns it in evaluation mode.

    The same seed on the same machine with the same number of threads gives the same weights.

    Args:
        seed: decides the first weights and what is drawn.
        num_epochs: how often it sees each image, in another domain each time.
    """
    digits = load_digits().teacher
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitTeacher()
        drawing = nn.Linear(model.head.in_features, SIZE * SIZE)  # not part of the teacher
        parameters = [*model.parameters(), *drawing.parameters()]
        num_steps = -(-len(digits) // _BATCH_SIZE) * num_epochs
        optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=num_steps)
        for _ in range(num_epochs):
            for rows in torch.split(torch.randperm(len(digits)), _BATCH_SIZE):
                optimizer.zero_grad(set_to_none=True)
                _loss(model, drawing, digits.select(rows)).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, _MAX_GRAD_NORM)
                optimizer.step()
                schedule.step()
    return model.eval()


def _loss(model: DigitTeacher, drawing: nn.Module, digits: Digits) -> Tensor:
    seen = in_some_domain(digits.pixels)
    pooled = model.pooled(as_pixel_values(seen))
    drawn = functional.mse_loss(drawing(pooled), seen.flatten(1))
    return functional.cross_entropy(model.head(pooled), digits.label) + _DRAWING_WEIGHT * drawn
