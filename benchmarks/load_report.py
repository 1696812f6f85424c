"""What `benchmarks.load` says of what it counted."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.load_offer import Tally
from benchmarks.tenants_fairness import jain_index, p99

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Outcome"]

_HEADINGS = ("pairs due", "done", "deferred", "not begun", "accepted", "answered", "refused", "share")
_TIMES = ("p50 ms", "p99 ms", "p50 once accepted", "p99 once accepted")


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        seconds: in which turns were offered.
        capacity_pairs_per_s: measured before.
        tallies: by tenant.
        problems: of the streams themselves.
        num_short: frames that had to wait for credit.
        growth_mb: of the server's memory, from the second to the last quarter of the run, in MiB.
    """

    seconds: float
    capacity_pairs_per_s: float
    tallies: Mapping[str, Tally]
    problems: Sequence[str]
    num_short: int
    growth_mb: float

    @property
    def total(self) -> Tally:
        """Of all tenants."""
        total = Tally()
        for tally in self.tallies.values():
            total.add(tally)
        return total

    @property
    def is_honest(self) -> bool:
        """Whether every turn was answered, or refused with a time to come back."""
        total = self.total
        return (
            total.accepted == total.answered
            and total.refused == total.refused_with_retry_after
            and not self.other_errors
        )

    @property
    def other_errors(self) -> list[str]:
        """What must not be there at all."""
        return [*self.total.failed, *self.problems]

    def table(self) -> Table:
        """Returns a row for each tenant, and one for all."""
        total = self.total
        table = Table(
            title=f"{total.due / self.seconds:.1f} pairs a second offered where "
            f"{self.capacity_pairs_per_s:.1f} could be done",
            caption="Deferred: too many pairs were in flight when they were due. Milliseconds: of answered "
            "turns, from when they were due, with all that was refused or deferred; once accepted: from when "
            "they were sent for the last time.",
        )
        table.add_column("tenant")
        for heading in (*_HEADINGS, *_TIMES):
            table.add_column(heading, justify="right")
        for name, tally in [*self.tallies.items(), ("all", total)]:
            counts = [tally.due, tally.done, tally.deferred, tally.not_begun]
            counts += [tally.accepted, tally.answered, tally.refused]
            share = f"{tally.answered / max(total.answered, 1):.1%}"
            table.add_row(name, *map(str, counts), share, *_times(tally))
        return table

    def json(self) -> dict[str, Any]:
        """Returns what programs read."""
        total = self.total
        served = [tally.answered for tally in self.tallies.values()]
        return {
            "accepted": total.accepted,
            "answered": total.answered,
            "refused": total.refused,
            "refused_with_retry_after": total.refused_with_retry_after,
            "other_errors": len(self.other_errors),
            "p99_ms": _p99_ms(total.turns_s),
            "memory_growth_mb": round(self.growth_mb, 1),
            "capacity_pairs_per_s": round(self.capacity_pairs_per_s, 1),
            "offered_pairs_per_s": round(total.due / self.seconds, 1),
            "done_pairs_per_s": round(total.done / self.seconds, 1),
            "p99_once_accepted_ms": _p99_ms(total.accepted_s),
            "p99_pair_ms": _p99_ms(total.pairs_s),
            "retained_share": round(total.retained / max(total.done, 1), 4),
            "deferred": total.deferred,
            "not_begun": total.not_begun,
            "short_of_credit": self.num_short,
            "jain": round(jain_index(served), 4) if any(served) else 0.0,
        }


def _times(tally: Tally) -> list[str]:
    cells = []
    for seconds in (tally.turns_s, tally.accepted_s):
        cells += [f"{statistics.median(seconds) * 1000:.0f}" if seconds else "-", f"{_p99_ms(seconds):.0f}"]
    return cells


def _p99_ms(seconds: Sequence[float]) -> float:
    return round(p99(seconds) * 1000, 1) if len(seconds) > 1 else 0.0
