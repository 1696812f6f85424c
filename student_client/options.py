"""How a client reaches a teacher and how long it waits."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ClientOptions", "parse_address"]

_MAX_PORT = 65535
_SCHEME = "preceptor://"


class ClientOptions(BaseModel):
    """Deadlines and limits of a client."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connect_timeout_s: float = Field(
        default=5.0, gt=0, description="For opening a conversation at one replica."
    )
    answer_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="For one answer; past it the replica is given up and the turn replayed.",
    )
    deadline_s: float = Field(default=180.0, gt=0, description="For one turn with all its retries.")
    initial_backoff_s: float = Field(default=0.1, gt=0, description="First pause between attempts.")
    max_backoff_s: float = Field(default=2.0, gt=0, description="Longest pause between attempts.")
    max_frame_bytes: int = Field(default=64 * 2**20, ge=4096, description="Largest frame that is received.")


def parse_address(address: str) -> tuple[str, ...]:
    """Splits `preceptor://host:port,host:port` (the scheme may be left out) into its replicas.

    Raises:
        ValueError: it has another form.
    """
    replicas = tuple(part.strip() for part in address.removeprefix(_SCHEME).split(","))
    for replica in replicas:
        host, separator, port = replica.rpartition(":")
        if not (separator and host and port.isdecimal() and 0 < int(port) <= _MAX_PORT) or "/" in replica:
            raise ValueError(f"address: got {address!r}, expected preceptor://HOST:PORT[,HOST:PORT...]")
    return replicas
