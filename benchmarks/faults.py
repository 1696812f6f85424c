"""What can befall a network, and whether it has: the words of `fault_proxy`."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Direction", "Fault", "Strike"]

_PATIENCE_S = 30.0


class Fault(StrEnum):
    """What can befall connections.

    CUT: both ends get a FIN, as from a middlebox that restarts in good order.
    RESET: both ends get a RST.
    DELAY: every chunk waits, in both directions and on new connections too, until `heal`.
    STALL: those that are open carry nothing any more, and nobody is told; new ones work.
    BLACKOUT: the same for all, new ones too, until `heal`; then what was held is delivered.
    DUPLICATE: the next chunk is sent twice.
    TRUNCATE: half of the next chunk is sent, then both ends get a RST.
    REFUSE: new connections are refused until `heal`; open ones go on.
    """

    CUT = "cut"
    RESET = "reset"
    DELAY = "delay"
    STALL = "stall"
    BLACKOUT = "blackout"
    DUPLICATE = "duplicate"
    TRUNCATE = "truncate"
    REFUSE = "refuse"

    @property
    def stays(self) -> bool:
        """Whether it befalls connections to come, too."""
        return self in (Fault.DELAY, Fault.BLACKOUT, Fault.REFUSE)


class Direction(StrEnum):
    """Which way bytes go."""

    TO_TEACHER = "to teacher"
    TO_STUDENT = "to student"


@dataclass(eq=False)
class Strike:
    """One fault that was ordered.

    Attributes:
        fault: which.
        direction: of the bytes that it waits for.
        left_bytes: so many more have to pass first.
        struck_s: when it struck, on `time.monotonic`; None: it has not.
    """

    fault: Fault
    direction: Direction
    left_bytes: int
    struck_s: float | None = None
    _struck: threading.Event = field(default_factory=threading.Event)

    def tell(self) -> None:
        """Says that it has struck."""
        self.struck_s = time.monotonic()
        self._struck.set()

    def wait(self, timeout_s: float = _PATIENCE_S) -> bool:
        """Waits until it has struck; returns whether it has."""
        return self._struck.wait(timeout_s)
