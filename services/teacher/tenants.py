"""Tenants: the teams that may talk, by bearer token.

A token is `NAME.SECRET`, the secret 256 random bits. The file of tenants has salted SHA-256 digests of
secrets only; `gate` reads it. Knows neither gRPC nor Ray, and no torch: the directory's small process imports
it too.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import hmac
import os
import secrets
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from preceptor.settings import read_fields

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

__all__ = [
    "MAX_AMOUNT",
    "MAX_COUNT",
    "MIN_AMOUNT",
    "TENANT_NAME",
    "Tenant",
    "TenantKey",
    "Tenants",
    "forget_unfinished",
    "new_key",
]

_NUM_RANDOM_BYTES = 4
TENANT_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
MIN_AMOUNT, MAX_AMOUNT = 0.001, 1e9
MAX_COUNT = 10**9


class _Model(BaseModel):
    # Copies are checked too before they are written: a file that can't be read shuts out everybody.
    model_config = ConfigDict(frozen=True, extra="forbid", revalidate_instances="always")


class TenantKey(_Model):
    """What is kept of a secret."""

    salt: str = Field(pattern=r"^[0-9a-f]{32}$", description="Random, hexadecimal.")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of salt and secret, hexadecimal.")
    expires: AwareDatetime | None = Field(default=None, description="When it ends; null: with its tenant.")

    def fits(self, secret: str) -> bool:
        """Whether a secret is the one; takes as long whatever it is."""
        return hmac.compare_digest(_digest(self.salt, secret), self.digest)


class Tenant(_Model):
    """A team."""

    keys: tuple[TenantKey, ...] = Field(description="Of its tokens; none: it is revoked.")
    expires: AwareDatetime | None = Field(default=None, description="When it ends; null: never.")
    max_conversations: int | None = Field(
        default=None,
        ge=1,
        le=MAX_COUNT,
        description="Open at a time, a replica; null: as the service limits it.",
    )
    tokens_per_s: float | None = Field(
        default=None,
        ge=MIN_AMOUNT,
        le=MAX_AMOUNT,
        allow_inf_nan=False,
        description="Rows x positions a second, a replica; null: as it comes.",
    )
    max_queued_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_COUNT,
        description="Rows x positions that wait, a replica; null: the service's limit.",
    )
    weight: float = Field(
        default=1.0, ge=MIN_AMOUNT, le=MAX_AMOUNT, allow_inf_nan=False, description="Its share of service."
    )
    teachers: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None, description="Names of the teachers it may talk to; null: all that read this file."
    )

    operator: bool = Field(
        default=False, description="Whether it sees how all others fare, not only itself; it may talk too."
    )

    def has_ended(self, now: datetime) -> bool:
        """Whether the team as a whole has expired."""
        return self.expires is not None and self.expires <= now

    def good_keys(self, now: datetime) -> tuple[TenantKey, ...]:
        """Returns the keys of the tokens that let somebody in."""
        if self.has_ended(now):
            return ()
        return tuple(key for key in self.keys if key.expires is None or key.expires > now)


class Tenants(_Model):
    """All that may talk to a teacher."""

    # Not optional: a file that is empty while it is being written says nothing of anybody.
    tenants: dict[Annotated[str, Field(pattern=TENANT_NAME)], Tenant] = Field(description="By name.")

    @classmethod
    def load(cls, path: Path) -> Tenants:
        """Reads a file of tenants.

        Raises:
            OSError: it can't be read.
            ValueError: it is not YAML, or a field is wrong.
        """
        return cls.model_validate(read_fields(path))

    def save(self, path: Path) -> None:
        """Writes the file in one piece: a new one for its owner alone, an old one as it was.

        Raises:
            OSError: it can't be written, or not with the owner it has.
        """
        path = path.resolve()
        before = path.stat() if path.exists() else None
        aside = path.with_name(f".{path.name}.{secrets.token_hex(_NUM_RANDOM_BYTES)}.part")
        aside.touch(mode=0o600, exist_ok=False)
        try:
            with aside.open("w") as file:
                yaml.safe_dump(self.model_dump(mode="json"), file, sort_keys=False)
                file.flush()
                os.fsync(file.fileno())
            if before is not None:
                os.chown(aside, before.st_uid, before.st_gid)
                aside.chmod(before.st_mode & 0o777)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        _sync_names(path.parent)

    def changed(self, name: str, tenant: Tenant) -> Tenants:
        """Returns the same with a tenant put in, or in another's place."""
        return Tenants(tenants={**self.tenants, name: tenant})

    def without(self, name: str) -> Tenants:
        """Returns the same without a tenant."""
        return Tenants(tenants={other: each for other, each in self.tenants.items() if other != name})


def forget_unfinished(path: Path) -> None:
    """Deletes what writers of a file of tenants have left that were killed; while nobody writes it."""
    path = path.resolve()
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        left.unlink(missing_ok=True)


def _sync_names(folder: Path) -> None:
    """Has the names in a folder survive a loss of power, where the file system can."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


def new_key(name: str) -> tuple[str, TenantKey]:
    """Returns a new token of a tenant, to be shown once, and what is kept of it."""
    salt, secret = secrets.token_hex(16), secrets.token_urlsafe(32)
    return f"{name}.{secret}", TenantKey(salt=salt, digest=_digest(salt, secret))


def _digest(salt: str, secret: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + secret.encode()).hexdigest()
