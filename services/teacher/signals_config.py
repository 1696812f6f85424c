"""What a service tells of itself while it runs: metrics, traces, logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from preceptor.tracing import check_target, resolved_target

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SignalsConfig"]


class SignalsConfig(BaseModel):
    """What a service tells of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    metrics: bool = Field(default=True, description="Whether Ray's metrics ports tell of the replicas.")
    traces: str | None = Field(
        default=None,
        description="Where spans of traced turns go: a file, or otlp://HOST:PORT; null: nowhere.",
    )
    logs: Literal["text", "json"] = Field(
        default="text", description="What lines of the replicas' and the directory's logs are."
    )

    @field_validator("traces")
    @classmethod
    def _check_traces(cls, target: str | None) -> str | None:
        return check_target(target)

    def resolved(self, folder: Path) -> SignalsConfig:
        """Returns the same with a relative path taken from `folder`."""
        return self.model_copy(update={"traces": resolved_target(self.traces, folder)})
