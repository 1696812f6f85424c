"""The audit log: a line of JSON for each conversation that opens, closes or is refused.

Its logger is `preceptor.audit`. It names tenants and peers, and holds nothing of what was said and no secret.
"""

from __future__ import annotations

import json
import logging
from typing import Any

__all__ = ["audit"]

_audit = logging.getLogger("preceptor.audit")


def audit(event: str, **facts: Any) -> None:
    """Writes one line: "opened", "closed" or "refused"."""
    _audit.info("%s", json.dumps({"event": event, **facts}))
