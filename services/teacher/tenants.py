"""Tenants: the teams that may talk, by bearer token.

A token is `NAME.SECRET`, the secret 256 random bits. The file of tenants has salted SHA-256 digests of
secrets only, and is read again when it changes. Knows neither gRPC nor Ray, and no torch: the directory's
small process imports it too.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from preceptor.settings import read_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["TENANT_NAME", "AccessDeniedError", "Gate", "Pass", "Tenant", "TenantKey", "Tenants", "new_key"]

logger = logging.getLogger(__name__)

TENANT_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
_HEADER = "authorization"
_SCHEME = "Bearer "
_REFRESH_S = 1.0
_MAX_BLIND_S = 300.0


class AccessDeniedError(Exception):
    """The caller showed no token, or none that is good (any more)."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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
        default=None, ge=1, description="Open at a time, a replica; null: as many as there is room for."
    )
    tokens_per_s: float | None = Field(
        default=None, gt=0, description="Rows x positions a second, a replica; null: as it comes."
    )


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
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
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

    def changed(self, name: str, tenant: Tenant) -> Tenants:
        """Returns the same with a tenant put in, or in another's place."""
        return Tenants(tenants={**self.tenants, name: tenant})


def new_key(name: str) -> tuple[str, TenantKey]:
    """Returns a new token of a tenant, to be shown once, and what is kept of it."""
    salt, secret = secrets.token_hex(16), secrets.token_urlsafe(32)
    return f"{name}.{secret}", TenantKey(salt=salt, digest=_digest(salt, secret))


def _digest(salt: str, secret: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + secret.encode()).hexdigest()


_NOBODY = new_key("nobody")[1]


@dataclass(frozen=True)
class Pass:
    """What a student was let in with.

    Attributes:
        tenant: its team.
        digest: of the token it showed.
        max_conversations: of its team, a replica; None: no limit of its own.
        tokens_per_s: of its team, a replica; None: no limit.
    """

    tenant: str
    digest: str
    max_conversations: int | None = None
    tokens_per_s: float | None = None


class Gate:
    """Says who may talk.

    Args:
        path: the file of tenants.
        clock: seconds of the epoch.

    Raises:
        OSError, ValueError: as in `Tenants.load`.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._stamp: tuple[int, int, int] | None = self._stamp_now()
        self._tenants = Tenants.load(path).tenants
        self._looked_s = clock()
        self._blind_since_s: float | None = None

    def admit(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> Pass:
        """Returns the pass of a caller.

        Args:
            metadata: of its call.

        Raises:
            AccessDeniedError: it has no token, or none that is good; does not say what is wrong with it.
        """
        values = [value for name, value in metadata or () if name.lower() == _HEADER]
        if len(values) != 1 or not isinstance(values[0], str) or not values[0].startswith(_SCHEME):
            raise AccessDeniedError("authorization: got none, expected `Bearer TOKEN`")
        name, _, secret = values[0].removeprefix(_SCHEME).partition(".")
        self._refresh(at_once=True)  # calls are few: what was added, or revoked, counts at once
        shown = self._pass_of(name, secret)
        if shown is None:
            raise AccessDeniedError("authorization: got a token that is not known, or not any more")
        return shown

    def _pass_of(self, name: str, secret: str) -> Pass | None:
        tenant = self._tenants.get(name)
        keys = tenant.keys if tenant is not None else ()
        is_nobody = _NOBODY.fits(secret)  # so that a name that is not there costs a comparison, too
        fitting = [key for key in keys if key.fits(secret) and not is_nobody]
        if tenant is None or not fitting or self._is_blind:
            return None
        if not self._lasts(tenant.expires, fitting[0].expires):
            return None
        return Pass(name, fitting[0].digest, tenant.max_conversations, tenant.tokens_per_s)

    def allows(self, shown: Pass) -> bool:
        """Whether a pass still holds; it ends when its token is revoked or expires."""
        self._refresh()
        tenant = self._tenants.get(shown.tenant)
        if tenant is None or self._is_blind:
            return False
        return any(
            key.digest == shown.digest and self._lasts(tenant.expires, key.expires) for key in tenant.keys
        )

    def _lasts(self, *ends: datetime | None) -> bool:
        now = datetime.fromtimestamp(self._clock(), UTC)
        return all(end is None or now < end for end in ends)

    def _refresh(self, *, at_once: bool = False) -> None:
        """Reads the file again if it has changed; one that can't be read changes nothing, for minutes."""
        now_s = self._clock()
        if not at_once and 0 <= now_s - self._looked_s < _REFRESH_S:
            return
        self._looked_s = now_s
        try:
            stamp = self._stamp_now()
            if stamp == self._stamp:
                return
            self._stamp = stamp  # whatever is in it is looked at once
            self._tenants = Tenants.load(self._path).tenants
        except Exception as error:  # noqa: BLE001 - whatever is in the file, nobody else is disturbed
            if isinstance(error, OSError):
                self._stamp = None  # it may come back, or be opened to us, as it is
            if self._blind_since_s is None:
                self._blind_since_s = now_s
                logger.error("the tenants stay what they were: %s: %s", self._path, type(error).__name__)  # noqa: TRY400
            return
        self._blind_since_s = None
        logger.info("the tenants were read anew: %d", len(self._tenants))

    @property
    def _is_blind(self) -> bool:
        """Whether the file can't be read for so long that nobody can rely on what it said."""
        return self._blind_since_s is not None and self._clock() - self._blind_since_s > _MAX_BLIND_S

    def _stamp_now(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
