"""What the students' errors are to be compared with: the teacher itself, and no neural network at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from examples.movielens.data import Ratings, Split

__all__ = ["bias_rmse", "teacher_rmse"]

_DAMPINGS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def teacher_rmse(model: nn.Module, ratings: Ratings) -> float:
    """Returns a recommender's root mean squared error, in stars."""
    with torch.no_grad():
        predicted = model.eval()(user=ratings.user, item=ratings.item)
    return _rmse(predicted.squeeze(-1), ratings.rating)


def bias_rmse(split: Split) -> float:
    """Returns the test error, in stars, of mean + item's bias + user's bias, fitted on a team's ratings.

    Biases are means of what is left, damped towards 0; the dampings are chosen on the validation ratings.
    """
    best = min(
        ((for_items, for_users) for for_items in _DAMPINGS for for_users in _DAMPINGS),
        key=lambda dampings: _rmse(_predict(split.train, split.valid, *dampings), split.valid.rating),
    )
    return _rmse(_predict(split.train, split.test, *best), split.test.rating)


def _predict(train: Ratings, wanted: Ratings, item_damping: float, user_damping: float) -> Tensor:
    mean = train.rating.mean()
    num_items = 1 + int(torch.cat([train.item, wanted.item]).max())
    num_users = 1 + int(torch.cat([train.user, wanted.user]).max())
    of_item = _damped_means(train.item, train.rating - mean, num_items, item_damping)
    rest = train.rating - mean - of_item[train.item]
    of_user = _damped_means(train.user, rest, num_users, user_damping)
    return mean + of_item[wanted.item] + of_user[wanted.user]


def _damped_means(groups: Tensor, values: Tensor, num_groups: int, damping: float) -> Tensor:
    sums = torch.zeros(num_groups).index_add_(0, groups, values)
    return sums / (torch.bincount(groups, minlength=num_groups) + damping)


def _rmse(predicted: Tensor, rating: Tensor) -> float:
    return float((predicted - rating).pow(2).mean().sqrt())
