"""How a client reaches a teacher and how long it waits."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from preceptor.hosts import Address, host_of, parse_address

__all__ = ["Address", "ClientOptions", "TlsOptions", "parse_address"]

_FILES = {"ca_file", "certificate_file", "key_file"}


class TlsOptions(BaseModel):
    """How a client knows the teacher, and the teacher the client; files are read for each connection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca_file: Path | None = Field(
        default=None, description="The authority of the teacher's certificate, PEM; null: the system's."
    )
    certificate_file: Path | None = Field(
        default=None, description="The client's certificate with its chain, PEM, where the teacher wants one."
    )
    key_file: Path | None = Field(default=None, description="Its private key, PEM.")
    server_name: str | None = Field(
        default=None, description="The name in the teacher's certificate; null: the address's host."
    )

    def resolved(self, folder: Path) -> TlsOptions:
        """Returns the same with paths that hold anywhere, relative ones taken from `folder`."""
        files = self.model_dump(include=_FILES, exclude_none=True)
        return self.model_copy(update={name: folder / path for name, path in files.items()})

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file, key_file: got one, expected both or none")
        return self


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
    keepalive_s: float = Field(
        default=20.0,
        gt=0,
        description="Seconds without a word from a replica after which it is asked whether it is there; as "
        "many without an answer, and the stream is lost. Services bear no less than 1.",
    )
    max_frame_bytes: int = Field(default=64 * 2**20, ge=4096, description="Largest frame that is received.")
    token_file: Path | None = Field(
        default=None, description="The file with the team's token; null: PRECEPTOR_TOKEN, if that is set."
    )
    tls: TlsOptions | None = Field(
        default=None, description="For preceptors:// addresses; null: the system's authorities."
    )
    insecure: bool = Field(
        default=False,
        description="Whether the token may be shown to other machines in the clear, where nobody else "
        "listens.",
    )

    def resolved(self, folder: Path) -> ClientOptions:
        """Returns the same with paths that hold anywhere, relative ones taken from `folder`."""
        token_file = None if self.token_file is None else folder / self.token_file
        tls = None if self.tls is None else self.tls.resolved(folder)
        return self.model_copy(update={"token_file": token_file, "tls": tls})

    def at(self, address: Address) -> ClientOptions:
        """Returns the options as they hold at an address: with `tls`, and the name to expect, if it has TLS.

        Raises:
            ValueError: `tls` was given for an address without, or no name for an address of several hosts.
        """
        if not address.is_secure:
            if self.tls is not None:
                raise ValueError("address: got preceptor:// with options.tls, expected preceptors://")
            return self
        tls = self.tls or TlsOptions()
        if tls.server_name is None:
            # A directory names replicas by their IPs; they have the service's certificate.
            hosts = {host_of(replica) for replica in address.replicas}
            if len(hosts) > 1:
                raise ValueError(
                    f"options.tls.server_name: got none for {', '.join(sorted(hosts))}, expected the name in "
                    "the service's certificate"
                )
            tls = tls.model_copy(update={"server_name": hosts.pop()})
        return self.model_copy(update={"tls": tls})
