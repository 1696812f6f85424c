"""The optimizer of a run and its schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from student_client.config import OptimizerConfig
    from student_client.objective import Objective

__all__ = ["build_optimizer", "build_schedule"]


def build_optimizer(objective: Objective, config: OptimizerConfig) -> torch.optim.AdamW:
    """Returns an AdamW over all that is trained; the codec may have a learning rate of its own."""
    codec = [] if objective.talk is None else [p for p in objective.talk.parameters() if p.requires_grad]
    codec_ids = {id(parameter) for parameter in codec}
    own = [p for p in objective.parameters() if p.requires_grad and id(p) not in codec_ids]
    groups: list[dict[str, Any]] = [{"params": own}]
    if codec:
        groups.append({"params": codec, "lr": config.codec_lr or config.lr})
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns the factor of the learning rates: a linear warm-up, then constant or half a cosine to 0."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        done = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
