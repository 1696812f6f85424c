"""Measures pairs per second of tenants that share a teacher, by variant, number of tenants and size of turn.

The variants of a cell take turns, in changing order, so that other load on the machine meets all alike.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.pairs import SIZES, num_pairs_for, run_round, warm_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.pairs import PairCost, Tenant
    from benchmarks.tenants_dedicated import DedicatedTenants

__all__ = ["Cell", "Measurements", "measure_throughput"]

# Rounds of many large turns are long however few pairs they have; after this many times what a round should
# take, a cell gets no more.
_MAX_ROUNDS_A_CELL = 20
_MAX_DEDICATED_TOKENS = 1 << 15  # 16 large turns; a graph of one takes about 150 MB


@dataclass(frozen=True)
class Cell:
    """How many tenants send turns of which size."""

    num_tenants: int
    size: str

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.num_tenants}_{self.size}"


@dataclass
class Measurements:
    """What was measured.

    Attributes:
        rates: pairs a second of each round, by variant and cell.
        costs: of the pairs of `ours`, by cell.
    """

    rates: dict[str, dict[Cell, list[float]]] = field(default_factory=lambda: defaultdict(dict))
    costs: dict[Cell, list[PairCost]] = field(default_factory=lambda: defaultdict(list))

    def pairs_per_s(self, variant: str, cell: Cell) -> float | None:
        """Returns the median of the rounds, or None if the cell was not measured."""
        rates = self.rates.get(variant, {}).get(cell)
        return statistics.median(rates) if rates else None

    def ratio(self, cell: Cell, variant: str = "ours", other: str = "serial") -> float | None:
        """Returns how many times as many pairs one variant did as another."""
        both = self.pairs_per_s(variant, cell), self.pairs_per_s(other, cell)
        return both[0] / both[1] if both[0] is not None and both[1] is not None else None

    def retained_share(self, cell: Cell) -> float | None:
        """Returns the share of gradient turns of `ours` whose graph was still there."""
        costs = self.costs.get(cell)
        return sum(cost.retained for cost in costs) / len(costs) if costs else None

    def mean_num_tenants(self, cell: Cell) -> tuple[float, float] | None:
        """Returns how many tenants shared an exchange and a backward pass of `ours` on average."""
        costs = self.costs.get(cell)
        if not costs:
            return None
        forward, backward = zip(*(cost.num_tenants for cost in costs), strict=True)
        return statistics.fmean(forward), statistics.fmean(backward)


async def measure_throughput(
    shared: Mapping[str, Sequence[Tenant]],
    dedicated: DedicatedTenants | None,
    cells: Sequence[Cell],
    *,
    num_rounds: int,
    seconds: float,
    max_dedicated: int,
) -> Measurements:
    """Measures all variants in all cells.

    Args:
        shared: tenants of the variants that share a teacher, as many as the largest cell has.
        dedicated: tenants with a teacher each, as many as `max_dedicated`; None: not measured.
        cells: what to measure.
        num_rounds: of each variant in a cell.
        seconds: about what a round takes.
        max_dedicated: cells with more tenants are measured without `dedicated`, and so are those whose turns
            are so large that the graphs of as many teachers would not fit into 24 GiB.
    """
    measured = Measurements()
    for cell in cells:
        print(f"throughput: {cell.num_tenants} x {cell.size}", file=sys.stderr, flush=True)
        num_tokens = cell.num_tenants * SIZES[cell.size].num_tokens
        fits = cell.num_tenants <= max_dedicated and num_tokens <= _MAX_DEDICATED_TOKENS
        alone = dedicated if fits else None
        tenants = {variant: each[: cell.num_tenants] for variant, each in shared.items()}
        await _measure_cell(measured, cell, tenants, alone, num_rounds, seconds)
    return measured


async def _measure_cell(
    measured: Measurements,
    cell: Cell,
    shared: Mapping[str, Sequence[Tenant]],
    dedicated: DedicatedTenants | None,
    num_rounds: int,
    seconds: float,
) -> None:
    size = SIZES[cell.size]

    async def rate_of(variant: str, num_pairs: int) -> float:
        if variant in shared:
            done = await run_round(shared[variant], size, num_pairs)
            if variant == "ours":
                measured.costs[cell] += done.all_costs
            return done.pairs_per_s
        return dedicated.run_round(cell.num_tenants, size, num_pairs) if dedicated is not None else 0.0

    num_pairs = {
        variant: num_pairs_for(seconds, await warm_up(tenants, size), cell.num_tenants)
        for variant, tenants in shared.items()
    }
    if dedicated is not None:
        num_pairs["dedicated"] = num_pairs_for(
            seconds, dedicated.warm_up(cell.num_tenants, size), cell.num_tenants
        )
    spent_s = 0.0
    for index in range(num_rounds):
        for variant in list(num_pairs)[:: -1 if index % 2 else 1]:
            rate = await rate_of(variant, num_pairs[variant])
            spent_s += cell.num_tenants * num_pairs[variant] / rate
            measured.rates[variant].setdefault(cell, []).append(rate)
        if spent_s > _MAX_ROUNDS_A_CELL * seconds:
            break
