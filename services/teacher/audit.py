"""The audit log: a line of JSON for each conversation that opens, closes or is refused.

Its logger is `preceptor.audit`. It names tenants and peers, and holds nothing of what was said and no secret;
nor does what gRPC logs once this module is imported.
"""

from __future__ import annotations

import json
import logging
import math
import time
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["StrangersLog", "audit", "write_audit_to"]

_audit = logging.getLogger("preceptor.audit")

_MAX_LINES_PER_S = 20


def audit(event: str, **facts: Any) -> None:
    """Writes one line: "opened", "closed" or "refused"."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    _audit.info("%s", json.dumps({"time": now, "event": event, **facts}))


class StrangersLog:
    """Writes down whom nobody knows; some of them, since anybody can come as often as they like.

    Args:
        max_lines_per_s: lines in a second; the first one after them says how many were left out.
        clock: seconds that only go forward.
    """

    def __init__(
        self, max_lines_per_s: int = _MAX_LINES_PER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_lines_per_s = max_lines_per_s
        self._clock = clock
        self._second_s = -math.inf
        self._num_lines = self._num_left_out = 0

    def refused(self, peer: str, why: str) -> None:
        """Writes that somebody was refused, or counts it."""
        now_s = self._clock()
        if now_s - self._second_s >= 1:
            self._second_s, self._num_lines = now_s, 0
        if self._num_lines >= self._max_lines_per_s:
            self._num_left_out += 1
            return
        left_out = {"left_out": self._num_left_out} if self._num_left_out else {}
        self._num_lines, self._num_left_out = self._num_lines + 1, 0
        audit("refused", tenant="", peer=peer, why=why, **left_out)


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


def _without_header(record: logging.LogRecord) -> bool:
    if str(record.msg).startswith("Invalid encoding on"):
        record.msg, record.args = "a call had a header that is not UTF-8", ()
        record.exc_info = record.exc_text = None
    return True


# gRPC logs a header that it can't decode, before any code of ours sees it, and it may be a token.
logging.getLogger("grpc._cython.cygrpc").addFilter(_without_header)
