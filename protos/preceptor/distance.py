"""The distance between hidden states that both sides use.

Raw states of two models, or of two layers of one, differ in scale by orders of magnitude; dividing each
state by its root mean square makes the distance say how far apart their directions are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["normalise", "state_distance"]


def normalise(hidden_states: Tensor, eps: float = 1e-6) -> Tensor:
    """Divides every state by its root mean square over the last axis; keeps the shape [..., D]."""
    return hidden_states * (hidden_states.pow(2).mean(-1, keepdim=True) + eps).rsqrt()


def state_distance(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of scale-normalised states, per example.

    For one position it lies between 0 (same direction) and 4 (opposite directions).

    Args:
        first: [B, L, D].
        second: [B, L, D].
        mask: [B, L], bool; positions where it is false do not count.

    Returns:
        [B].
    """
    error = (normalise(first) - normalise(second)).pow(2).mean(-1)  # [B, L]
    return (error * mask).sum(-1) / mask.sum(-1).clamp_min(1)
