"""Where the console is: the operator's configuration of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DEFAULT_CONSOLE_PORT", "ConsoleConfig"]

DEFAULT_CONSOLE_PORT = 41480
_MAX_PORT = 65535


class ConsoleConfig(BaseModel):
    """The page that shows how the service is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int = Field(
        default=DEFAULT_CONSOLE_PORT,
        ge=1,
        le=_MAX_PORT,
        description="Its port, on the service's `host` and with its `tls`, where the directory runs.",
    )
