"""What is learnt of a teacher that is listened to: losses of its own reading, which no message changes.

Shapes: B batch, L positions of the student's sequence, D its width, C outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from preceptor.codec import resample
from preceptor.terms import ObservationKind
from student_client import losses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from student_client.talk_config import LossWeights
    from student_client.taps import Taps

__all__ = ["sequence", "told_kinds", "told_losses"]


def told_kinds(weights: LossWeights) -> set[ObservationKind]:
    """Returns what has to be observed for the losses that were given a weight."""
    kinds = set()
    if weights.kd and weights.kd_source == "head":
        kinds.add(ObservationKind.LOGITS)
    if weights.hint or weights.relation:
        kinds.add(ObservationKind.POOLED_STATE)
    if weights.attention:
        kinds |= {ObservationKind.LOWER_STATE, ObservationKind.UPPER_STATE}
    return kinds


def told_losses(
    weights: LossWeights,
    seen: Mapping[str, Tensor],
    *,
    logits: Tensor,
    taps: Taps,
    mask: Tensor,
    hint_map: nn.Linear | None,
) -> dict[str, Tensor]:
    """Returns the losses by name, unweighted.

    Args:
        weights: which are wanted.
        seen: what the teacher said, by kind.
        logits: the student's outputs, [B, C].
        taps: reads its states "lower" and "upper", [B, L, D] or [B, D].
        mask: their valid positions, [B, L], bool.
        hint_map: the student's width to the teacher's, if hints are wanted.
    """
    parts = {}
    if "logits" in seen:
        parts["kd"] = losses.logits_distillation(logits, seen["logits"], weights.temperature)
    if "pooled_state" in seen:
        pooled = _pooled(taps["upper"], mask)
        if hint_map is not None:
            parts["hint"] = losses.hint(hint_map(pooled), seen["pooled_state"])
        if weights.relation:
            parts["relation"] = losses.relation(pooled, seen["pooled_state"])
    if weights.attention:
        layers = [
            losses.attention(taps[tap], seen[f"{tap}_state"], mask, seen["mask"])
            for tap in ("lower", "upper")
        ]
        parts["attention"] = torch.stack(layers).mean()
    return parts


def sequence(states: Tensor) -> Tensor:
    """Gives [B, D] states a position axis."""
    return states[:, None] if states.ndim == 2 else states  # noqa: PLR2004 - rank


def _pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over valid positions, [B, D]."""
    one = torch.ones(mask.shape[0], 1, dtype=torch.bool, device=mask.device)
    return resample(sequence(states), mask, one)[:, 0]
