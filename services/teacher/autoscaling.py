"""How many replicas a teacher needs, by how long turns wait for it.

A conversation is one request to Serve for as long as it lasts, so Serve's own count of requests says nothing
of the work in it. Replicas tell what waits and what they compute; Serve applies the bounds and delays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.teacher.load import Load

__all__ = ["QueueDelayPolicy", "SupportsScaling", "desired_replicas", "stats_of"]

# What is left after one replica goes must not be so busy that another has to come at once.
_CALM_SHARE = 0.75
_CALM_QUEUE = 0.5
_MAX_GROWTH = 2.0


class SupportsScaling(Protocol):
    """What is used of Serve's `AutoscalingContext`.

    Attributes:
        aggregated_metrics: what replicas told, by name and replica, averaged over the last seconds.
        target_num_replicas: how many there should be by the last decision.
    """

    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None
    target_num_replicas: int


def stats_of(load: Load) -> dict[str, float]:
    """Returns what a replica tells of its load, as Serve wants it: numbers by name."""
    return {
        "queue_s": load.queue_s,
        "busy_share": load.busy_share,
        "queued_tokens": float(load.queued_tokens),
        "tokens_per_s": load.tokens_per_s,
        "retained_bytes": float(load.retained_bytes),
    }


def desired_replicas(
    queue_s: Sequence[float], busy_shares: Sequence[float], num_replicas: int, target_queue_s: float
) -> int:
    """Returns how many replicas there should be.

    More, at most twice as many, if turns wait longer than they should; one less if the rest could do its work
    with time to spare.

    Args:
        queue_s: seconds that what waits will take, of each replica that tells.
        busy_shares: shares of time that each computes.
        num_replicas: how many there are.
        target_queue_s: how long turns may wait.
    """
    if not queue_s or num_replicas == 0:
        return max(num_replicas, 1)
    delay_s = sum(queue_s) / len(queue_s)
    if delay_s > target_queue_s:
        return math.ceil(num_replicas * min(delay_s / target_queue_s, _MAX_GROWTH))
    is_calm = delay_s <= _CALM_QUEUE * target_queue_s and len(busy_shares) >= num_replicas
    if num_replicas > 1 and is_calm and sum(busy_shares) <= _CALM_SHARE * (num_replicas - 1):
        return num_replicas - 1
    return num_replicas


class QueueDelayPolicy:
    """Serve's autoscaling policy of a teacher.

    Args:
        target_queue_s: how long turns may wait.
    """

    def __init__(self, target_queue_s: float) -> None:
        self._target_queue_s = target_queue_s

    def __call__(self, ctx: SupportsScaling) -> tuple[int, dict[str, Any]]:
        """Returns the number of replicas wanted, and no state."""
        metrics = ctx.aggregated_metrics or {}
        queue_s = list(metrics.get("queue_s", {}).values())
        busy_shares = list(metrics.get("busy_share", {}).values())
        wanted = desired_replicas(queue_s, busy_shares, ctx.target_num_replicas, self._target_queue_s)
        return wanted, {}
