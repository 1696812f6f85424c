"""The audit log: a line of JSON for each conversation that opens, closes or is refused.

Its logger is `preceptor.audit`. It names tenants and peers, and holds nothing of what was said and no secret;
nor does what gRPC logs once this module is imported.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import TYPE_CHECKING, Any

from preceptor.names import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["RefusalsLog", "audit", "write_audit_to"]

_audit = logging.getLogger("preceptor.audit")

_MAX_LINES_PER_S = 20
_MAX_TENANTS = 1000


def audit(event: str, **facts: Any) -> None:
    """Writes one line: "opened", "closed" or "refused"."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    _audit.info("%s", json.dumps({"time": now, "event": event, **facts}))


@dataclass
class _Second:
    """What was written of somebody since `began_s`, and what was not."""

    began_s: float = -math.inf
    num_lines: int = 0
    num_left_out: int = 0


class RefusalsLog:
    """Writes down who was refused; some of them, since anybody can come as often as they like.

    Each tenant has lines of its own, and those whom nobody knows share some: neither hides the others.

    Args:
        max_lines_per_s: lines of a tenant in a second; the first one after them says how many were left out.
        max_tenants: those beyond share their lines.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        max_lines_per_s: int = _MAX_LINES_PER_S,
        max_tenants: int = _MAX_TENANTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_lines_per_s = max_lines_per_s
        self._max_tenants = max_tenants
        self._clock = clock
        self._seconds: dict[str, _Second] = {}
        self._strangers, self._others = _Second(), _Second()

    def refused(self, tenant: str, peer: str, why: str) -> None:
        """Writes that somebody was refused, or counts it.

        Args:
            tenant: whose; empty: nobody knows.
            peer: where they came from.
            why: what they were told.
        """
        now_s = self._clock()
        second = self._second_of(tenant, now_s)
        if now_s - second.began_s >= 1:
            second.began_s, second.num_lines = now_s, 0
        if second.num_lines >= self._max_lines_per_s:
            second.num_left_out += 1
            return
        left_out = {"left_out": second.num_left_out} if second.num_left_out else {}
        second.num_lines, second.num_left_out = second.num_lines + 1, 0
        audit("refused", tenant=tenant or UNKNOWN, peer=peer, why=why, **left_out)

    def _second_of(self, tenant: str, now_s: float) -> _Second:
        if not tenant:
            return self._strangers
        if tenant not in self._seconds and len(self._seconds) >= self._max_tenants:
            self._seconds = {
                name: each
                for name, each in self._seconds.items()
                if each.num_left_out or now_s - each.began_s < 1
            }
            if len(self._seconds) >= self._max_tenants:
                return self._others
        return self._seconds.setdefault(tenant, _Second())


def write_audit_to(path: Path | None) -> None:
    """Has this process write its lines to a file, which others may append to and rotate, or to its stderr.

    Raises:
        OSError: the file can't be opened.
    """
    handler = logging.StreamHandler() if path is None else WatchedFileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    for old in list(_audit.handlers):
        _audit.removeHandler(old)
        old.close()
    _audit.addHandler(handler)
    _audit.setLevel(logging.INFO)
    _audit.propagate = False


def _without_what_callers_did(record: logging.LogRecord) -> bool:
    if str(record.msg).startswith("Invalid encoding on"):
        record.msg, record.args = "a call had a header that is not UTF-8", ()
    elif not record.getMessage().startswith("ExecuteBatchError raised in core"):
        return True
    record.exc_info = record.exc_text = None
    return True


# gRPC logs a header that it can't decode, before any code of ours sees it, and it may be a token; and, with a
# traceback, each call that is gone before it was answered. Whoever calls can have it do so without end.
logging.getLogger("grpc._cython.cygrpc").addFilter(_without_what_callers_did)
