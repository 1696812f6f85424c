"""Says who may talk, by the file of tenants, which it reads again when it changes.

Knows neither gRPC nor Ray, and no torch: the directory's small process imports it too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from preceptor.settings import problems
from services.teacher.tenants import Tenants, new_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from services.teacher.config import ServiceConfig
    from services.teacher.tenants import Tenant

__all__ = ["AccessDeniedError", "Gate", "Pass", "gate_of"]

logger = logging.getLogger(__name__)

ValueT = TypeVar("ValueT")

_HEADER = "authorization"
_SCHEME = "Bearer "
_REFRESH_S = 1.0
_MAX_BLIND_S = 300.0
_NOBODY = new_key("nobody")[1]


class AccessDeniedError(Exception):
    """The caller showed no token, or none that is good (any more) or good for this teacher.

    Attributes:
        tenant: whose token it showed; empty: none that is good.
    """

    def __init__(self, message: str, tenant: str = "") -> None:
        super().__init__(message)
        self.tenant = tenant


@dataclass(frozen=True)
class Pass:
    """What a student was let in with.

    Attributes:
        tenant: its team.
        digest: of the token it showed.
        max_conversations: of its team, a replica; None: no limit of its own.
        tokens_per_s: of its team, a replica; None: no limit.
        operator: whether it sees all that the service tells of itself.
    """

    tenant: str
    digest: str
    max_conversations: int | None = None
    tokens_per_s: float | None = None
    operator: bool = False


class Gate:
    """Says who may talk.

    Args:
        path: the file of tenants.
        teacher: the name of the teacher that it stands before.
        clock: seconds of the epoch.

    Attributes:
        weights: shares of service by tenant, as the file has them now.
        max_queued_tokens: rows x positions that may wait, by tenant; of those with a limit of their own.

    Raises:
        OSError, ValueError: as in `Tenants.load`.
    """

    def __init__(self, path: Path, teacher: str = "", clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._teacher = teacher
        self._clock = clock
        self._stamp: tuple[int, int, int] | None = self._stamp_now()
        self.weights: dict[str, float] = {}
        self.max_queued_tokens: dict[str, int] = {}
        self._tenants: dict[str, Tenant] = {}
        self._take(Tenants.load(path).tenants)
        self._looked_s = clock()
        self._blind_since_s: float | None = None
        self._reason, self._has_told = "", False
        self._looking = asyncio.Lock()
        self._reading = threading.Lock()

    async def look(self) -> None:
        """Reads the file again if it has changed, on a thread: a long one would hold up the event loop."""
        if self._has_changed():
            async with self._looking:
                await asyncio.to_thread(self._refresh, at_once=True)
        self._tell_if_blind()

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
        tenant = self._tenants.get(name)  # once: a thread may put others in their place meanwhile
        shown = self._pass_of(name, tenant, secret)
        if tenant is None or shown is None:
            raise AccessDeniedError("authorization: got a token that is not known, or not any more")
        if not self._may_talk_here(tenant):
            raise AccessDeniedError(f"authorization: {name} may not talk to {self._teacher}", name)
        return shown

    def _may_talk_here(self, tenant: Tenant) -> bool:
        return tenant.teachers is None or self._teacher in tenant.teachers

    def _pass_of(self, name: str, tenant: Tenant | None, secret: str) -> Pass | None:
        keys = tenant.keys if tenant is not None else ()
        is_nobody = _NOBODY.fits(secret)  # so that a name that is not there costs a comparison, too
        fitting = [key for key in keys if key.fits(secret) and not is_nobody]
        if tenant is None or not fitting or self.is_blind:
            return None
        if not self._lasts(tenant.expires, fitting[0].expires):
            return None
        return Pass(name, fitting[0].digest, tenant.max_conversations, tenant.tokens_per_s, tenant.operator)

    def allows(self, shown: Pass) -> bool:
        """Whether a pass still holds; it ends when its token is revoked or expires."""
        self._refresh()
        tenant = self._tenants.get(shown.tenant)
        if tenant is None or self.is_blind or not self._may_talk_here(tenant):
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
        with self._reading:
            self._read(now_s)
        self._tell_if_blind()

    def _read(self, now_s: float) -> None:
        stamp = None  # a file that is away, or closed to us, is looked at again as it is
        try:
            stamp = self._stamp_now()
            if stamp == self._stamp:
                return
            tenants = Tenants.load(self._path).tenants
        except Exception as error:  # noqa: BLE001 - whatever is in the file, nobody else is disturbed
            self._stamp = None if isinstance(error, OSError) else stamp
            self._lose_sight(now_s, _reason_of(error).removeprefix(f"{self._path}: "))
            return
        self._take(tenants)
        self._stamp = stamp  # the last: who sees it may rely on the tenants
        self._blind_since_s, self._reason, self._has_told = None, "", False
        logger.info("the tenants were read anew: %d", len(tenants))

    def _has_changed(self) -> bool:
        try:
            return self._stamp_now() != self._stamp
        except OSError:
            return True

    def _take(self, tenants: dict[str, Tenant]) -> None:
        self._tenants = tenants
        limits = {name: tenant.max_queued_tokens for name, tenant in tenants.items()}
        _become(self.weights, {name: tenant.weight for name, tenant in tenants.items()})
        _become(self.max_queued_tokens, {name: limit for name, limit in limits.items() if limit is not None})

    def _lose_sight(self, now_s: float, reason: str) -> None:
        if self._blind_since_s is None:
            self._blind_since_s = now_s
        if reason != self._reason:
            self._reason = reason
            end = datetime.fromtimestamp(self._blind_since_s + _MAX_BLIND_S, UTC).isoformat(
                timespec="seconds"
            )
            logger.error(
                "the tenants stay what they were until %s, then nobody is let in: %s: %s",
                end,
                self._path,
                reason,
            )

    def _tell_if_blind(self) -> None:
        if self.is_blind and not self._has_told:
            self._has_told = True
            logger.error("nobody is let in any more, until the tenants can be read: %s", self._path)

    @property
    def is_blind(self) -> bool:
        """Whether the file can't be read for so long that nobody can rely on what it said."""
        return self._blind_since_s is not None and self._clock() - self._blind_since_s > _MAX_BLIND_S

    def _stamp_now(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def gate_of(config: ServiceConfig) -> Gate | None:
    """Returns what stands before a service; None if whoever reaches it may talk.

    Raises:
        OSError, ValueError: as in `Tenants.load`.
    """
    return None if config.tenants is None else Gate(config.tenants, config.name)


def _reason_of(error: Exception) -> str:
    """Returns what is wrong with a file in one line, by field; no values, which may be secrets."""
    if isinstance(error, ValidationError):
        return problems(error)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) if isinstance(error, ValueError) else type(error).__name__


def _become(shared: dict[str, ValueT], now: dict[str, ValueT]) -> None:
    """Gives a dict that others read meanwhile the content of another."""
    shared.update(now)
    for name in shared.keys() - now.keys():
        del shared[name]
