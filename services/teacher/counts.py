"""Numbers of what was done: for a student, for a tenant, and by the teacher."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

__all__ = ["Counts", "PassSignals", "TenantSignals"]

_MAX_DELAYS = 256
_DELAYS_S = 60.0


@dataclass(slots=True)
class Counts:
    """What was done for somebody.

    Attributes:
        turns: answered, by kind: "exchange", "observe" or "backward".
        refusals: what was refused or failed, by the protocol's `Reason`.
        num_tokens: rows x positions of these turns.
        request_bytes: of all frames that came.
        answer_bytes: of all frames that answered.
        queue_s: how long these turns waited, added up.
        compute_s: their parts of the computations they shared, added up.
    """

    turns: Counter[str] = field(default_factory=Counter)
    refusals: Counter[int] = field(default_factory=Counter)
    num_tokens: int = 0
    request_bytes: int = 0
    answer_bytes: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0

    @property
    def num_turns(self) -> int:
        """Turns of all kinds."""
        return sum(self.turns.values())

    @property
    def num_refusals(self) -> int:
        """Refusals for all reasons."""
        return sum(self.refusals.values())

    def add(self, other: Counts) -> None:
        """Adds what was done besides."""
        self.turns.update(dict(other.turns))  # copied in one go: another thread may put a key in
        self.refusals.update(dict(other.refusals))
        self.num_tokens += other.num_tokens
        self.request_bytes += other.request_bytes
        self.answer_bytes += other.answer_bytes
        self.queue_s += other.queue_s
        self.compute_s += other.compute_s


@dataclass(slots=True)
class TenantSignals:
    """What a tenant had since the replica came up.

    Attributes:
        counts: of all its conversations; in a `Signals` itself, of those that are over.
        num_conversations: that are open.
        delays: when its last turns were answered, seconds of the epoch, and the seconds that they had waited.
    """

    counts: Counts = field(default_factory=Counts)
    num_conversations: int = 0
    delays: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MAX_DELAYS))

    def quantiles_s(self, now_s: float, *ranks: float) -> list[float]:
        """Returns the delays of the last minute at some ranks, 0 to 1; 0 if there was none."""
        delays = sorted([delay_s for then_s, delay_s in list(self.delays) if now_s - then_s <= _DELAYS_S])
        return [delays[min(int(rank * len(delays)), len(delays) - 1)] if delays else 0.0 for rank in ranks]


@dataclass(slots=True)
class PassSignals:
    """What the teacher computed; see `ReplicaStatus` of the protocol."""

    num_passes: int = 0
    num_computed: int = 0
    num_tenants_in_passes: int = 0
    num_retained: int = 0
    num_recomputed: int = 0
    num_cached_rows: int = 0
    num_read_rows: int = 0

    def computed(self, num_turns: int, num_tenants: int, num_cached_rows: int, num_read_rows: int) -> None:
        """Counts a pass."""
        self.num_passes += 1
        self.num_computed += num_turns
        self.num_tenants_in_passes += num_tenants
        self.num_cached_rows += num_cached_rows
        self.num_read_rows += num_read_rows

    def went_back(self, *, is_retained: bool) -> None:
        """Counts that a pass was a backward one."""
        self.num_retained += is_retained
        self.num_recomputed += not is_retained
