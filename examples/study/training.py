"""Trains the digits' teacher, once, on the teacher's own images, upright."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from examples.study.digits import SIZE, load_digits
from examples.study.models import DigitTeacher

if TYPE_CHECKING:
    from torch import Tensor, nn

    from examples.study.digits import Digits

__all__ = ["accuracy", "as_pixel_values", "train_digit_teacher"]

_NUM_EPOCHS = 100
_BATCH_SIZE = 64
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 0.05


def as_pixel_values(pixels: Tensor) -> Tensor:
    """Returns images [N, 8, 8] as models read them, [N, 3, 8, 8]."""
    return pixels[:, None].expand(-1, 3, -1, -1)


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Returns which part, 0 to 1, of some upright digits a model in evaluation mode tells."""
    with torch.no_grad():
        told = model(as_pixel_values(digits.pixels)).argmax(-1)
    return float((told == digits.label).float().mean())


def train_digit_teacher(seed: int) -> DigitTeacher:
    """Trains the teacher and returns it with the weights of the epoch that validates best.

    The same seed on the same machine with the same number of threads gives the same weights.
    """
    split = load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitTeacher()
        num_steps = -(-len(split.teacher_train) // _BATCH_SIZE) * _NUM_EPOCHS
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=num_steps)
        best, best_state = -1.0, model.state_dict()
        for _ in range(_NUM_EPOCHS):
            model.train()
            for rows in torch.split(torch.randperm(len(split.teacher_train)), _BATCH_SIZE):
                _step(model, split.teacher_train.select(rows), optimizer)
                schedule.step()
            value = accuracy(model.eval(), split.teacher_valid)
            if value >= best:
                best, best_state = value, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    return model


def _step(model: nn.Module, digits: Digits, optimizer: torch.optim.Optimizer) -> None:
    logits = model(as_pixel_values(_shifted(digits.pixels)))
    loss = functional.cross_entropy(logits, digits.label)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _shifted(pixels: Tensor) -> Tensor:
    """Moves each image by at most one pixel each way: 600 images are few."""
    padded = functional.pad(pixels, (1, 1, 1, 1))
    moves = torch.randint(3, (len(pixels), 2))
    rows = moves[:, 0, None] + torch.arange(SIZE)  # [B, 8]
    columns = moves[:, 1, None] + torch.arange(SIZE)
    return padded[torch.arange(len(pixels))[:, None, None], rows[:, :, None], columns[:, None, :]]
