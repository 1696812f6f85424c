"""A linear probe of a teacher: what its pooled states say of labels that it has no head for.

It is fitted once, before training, on the labelled training rows; how much it is held back is chosen on the
validation rows, by their loss. Its outputs are what a student is distilled from, or what lessons begin with.

Shapes: N rows, D the teacher's hidden size, C outputs.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Probe", "fit_held_out", "fit_probe", "loss_of", "worth_of"]

_L2_GRID = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)  # from the most held back, each begins where the last ended
_MAX_ITERATIONS = 200
_NUM_PARTS = 5
_OUTPUTS_OF_REGRESSION = 1


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear map of pooled states to outputs.

    Attributes:
        weight: [C, D].
        bias: [C].
        l2: what the squared weights were weighed with, of states scaled to variance 1.
    """

    weight: Tensor
    bias: Tensor
    l2: float

    def __call__(self, states: Tensor) -> Tensor:
        """Returns the outputs of pooled states, [N, D] -> [N, C]."""
        return functional.linear(states, self.weight, self.bias)

    def worth(self, states: Tensor, labels: Tensor) -> float:
        """Returns what its outputs are worth, see `worth_of`."""
        return worth_of(self(states), labels)


def worth_of(outputs: Tensor, labels: Tensor) -> float:
    """Returns the accuracy (0 to 1) of outputs [N, C], or their root mean squared error for numbers."""
    if labels.is_floating_point():
        return (outputs[:, 0] - labels).square().mean().sqrt().item()
    return (outputs.argmax(-1) == labels).float().mean().item()


def loss_of(outputs: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross entropy of outputs [N, C], or their mean squared error for numbers."""
    if labels.is_floating_point():
        return functional.mse_loss(outputs[:, 0], labels)
    return functional.cross_entropy(outputs, labels)


def fit_probe(
    states: Tensor, labels: Tensor, valid_states: Tensor, valid_labels: Tensor, num_classes: int
) -> Probe:
    """Fits a probe to some rows and chooses by others how much its weights are held back.

    With classes it is logistic regression (L-BFGS), with numbers ridge regression (solved).

    Args:
        states: pooled, [N, D].
        labels: [N], int64 classes or float32 numbers.
        valid_states: of other rows.
        valid_labels: of those.
        num_classes: C; of no matter for numbers.
    """
    mean, scale = states.mean(0), states.std(0, correction=0).clamp_min(1e-6)
    scaled = (states - mean) / scale
    is_regression = labels.is_floating_point()
    weight = states.new_zeros(_OUTPUTS_OF_REGRESSION if is_regression else num_classes, states.shape[1])
    bias = states.new_zeros(len(weight))
    found: list[tuple[float, Probe]] = []
    for l2 in _L2_GRID:
        if is_regression:
            weight, bias = _ridge(scaled, labels, l2)
        else:
            weight, bias = _logistic(scaled, labels, l2, weight, bias)
        probe = Probe(weight / scale, bias - weight @ (mean / scale), l2)
        found.append((loss_of(probe(valid_states), valid_labels).item(), probe))
    return min(found, key=lambda each: each[0])[1]


def fit_held_out(
    states: Tensor,
    labels: Tensor,
    valid_states: Tensor,
    valid_labels: Tensor,
    num_classes: int,
    *,
    seed: int = 0,
) -> Tensor:
    """Returns what probes say of rows that they were not fitted to, [N, C]: each has a part left out.

    What a probe says of its own rows is nearly their labels, and not what it gets wrong of others.

    Args:
        states: pooled, [N, D], of two rows at least.
        labels: [N], int64 classes or float32 numbers.
        valid_states: of other rows.
        valid_labels: of those.
        num_classes: C; of no matter for numbers.
        seed: decides the parts.
    """
    outputs: list[Tensor] = []
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split(min(_NUM_PARTS, len(labels)))
    for part in parts:
        rest = torch.ones(len(labels), dtype=torch.bool).index_fill(0, part, value=False)
        fitted = fit_probe(states[rest], labels[rest], valid_states, valid_labels, num_classes)
        outputs.append(fitted(states[part]))
    return torch.cat(outputs)[torch.cat(parts).argsort()]


def _ridge(scaled: Tensor, labels: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Minimises mean (y - wx - b)^2 + l2 w^2 over rows that have mean 0; returns [1, D] and [1]."""
    rows = scaled.double()
    bias = labels.double().mean()
    gram = rows.T @ rows / len(rows) + l2 * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    weight = torch.linalg.solve(gram, rows.T @ (labels.double() - bias) / len(rows))
    return weight[None].to(scaled.dtype), bias[None].to(scaled.dtype)


def _logistic(
    scaled: Tensor, labels: Tensor, l2: float, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimises the mean cross entropy + l2/2 w^2, from given weights [C, D] and [C]; returns new ones."""
    leaves = [each.clone().requires_grad_() for each in (weight, bias)]
    optimizer = torch.optim.LBFGS(leaves, max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            outputs = functional.linear(scaled, *leaves)
            loss = functional.cross_entropy(outputs, labels) + l2 / 2 * leaves[0].square().sum()
            torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return leaves[0].detach(), leaves[1].detach()
