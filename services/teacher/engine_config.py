"""How a replica computes, and what it keeps."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["CacheConfig", "EngineConfig"]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineConfig(_Config):
    """How turns of many tenants are computed together."""

    max_batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Rows x positions of one pass; a larger turn has a pass of its own. null: 2048, on CUDA "
        "16384.",
    )
    min_bucket: int | None = Field(
        default=None,
        ge=1,
        description="Turns of up to so many positions share passes, padded to the longest; longer ones share "
        "theirs with those of similar length. null: 1, and on CUDA, where a pass costs more than padding, 64",
    )
    max_wait_ms: float = Field(
        default=100.0,
        ge=0,
        description="How long an idle teacher waits at most for others that are about to ask; it learns how "
        "long that is worth.",
    )
    max_retained_bytes: int = Field(default=2 * 2**30, ge=0, description="Bytes of graphs kept, a replica.")
    compile_backend: str | None = Field(
        default=None, description="torch.compile's backend for the layers, for example inductor; null: none."
    )
    tenant_weights: dict[str, float] = Field(
        default_factory=dict,
        description="Shares of service by tenant, with `auth: none`; 1 for those not named.",
    )

    def sizes(self, device: str) -> tuple[int, int]:
        """Returns `max_batch_tokens` and `min_bucket` for a kind of device."""
        default_tokens, default_bucket = (16384, 64) if device == "cuda" else (2048, 1)
        return self.max_batch_tokens or default_tokens, self.min_bucket or default_bucket

    @field_validator("tenant_weights")
    @classmethod
    def _check_weights(cls, weights: dict[str, float]) -> dict[str, float]:
        for tenant, weight in weights.items():
            if not weight > 0:
                raise ValueError(f"{tenant}: got {weight}, expected a positive number")
        return weights


class CacheConfig(_Config):
    """What is kept of the teacher's own reading of inputs."""

    max_bytes: int = Field(default=2**30, ge=0, description="Bytes in memory, a replica; 0: nothing is kept.")
    folder: Path | None = Field(default=None, description="Also kept on disk, in this folder; null: not.")
    max_disk_bytes: int = Field(default=16 * 2**30, ge=2**20, description="Bytes on disk, a replica.")
    shared: bool = Field(
        default=False,
        description="Whether tenants share what is kept; the time of an answer then tells of others' inputs.",
    )
