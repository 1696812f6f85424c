"""How many replicas a service may have, and when it gets more."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ScalingConfig"]


class ScalingConfig(BaseModel):
    """Replicas come and go with the time that turns wait; `num_replicas` are always there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_replicas: int = Field(ge=1, le=64, description="Replicas at most.")
    target_queue_ms: float = Field(
        default=500.0, gt=0, description="Milliseconds that turns may wait, on average, before more come."
    )
    upscale_delay_s: float = Field(
        default=10.0, ge=0, description="Seconds for which they must have waited too long."
    )
    downscale_delay_s: float = Field(
        default=120.0, ge=0, description="Seconds for which one replica less must have been enough."
    )
    look_back_s: float = Field(default=10.0, gt=0, description="Seconds over which is averaged.")
