"""Measures what tenants with little load notice of one that asks for everything.

One tenant has ten conversations in a closed loop, fifteen others have one each. Compared with sixteen tenants
of one conversation each; the two take turns.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.pairs import SIZES, Round, Tenant, close_all, open_tenants, run_for, warm_up

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Fairness", "jain_index", "measure_fairness"]

_NUM_LIGHT = 15
_NUM_HEAVY_CONVERSATIONS = 10
_MIN_PAIRS = 300
_MAX_ROUNDS = 40
_SIZE = SIZES["small"]


@dataclass(frozen=True)
class Fairness:
    """What light tenants got.

    Attributes:
        light_tokens: positions served to each light tenant beside the heavy one.
        heavy_tokens: positions served to the heavy tenant.
        beside_heavy_s: what pairs of light tenants took beside the heavy one, in seconds.
        all_light_s: what they took when all tenants were light, in seconds.
    """

    light_tokens: list[int]
    heavy_tokens: int
    beside_heavy_s: list[float]
    all_light_s: list[float]

    @property
    def jain(self) -> float:
        """Jain's index over the light tenants: 1 if all got the same."""
        return jain_index(self.light_tokens)

    @property
    def heavy_share(self) -> float:
        """How many times as many tokens the heavy tenant was served as a light one."""
        return self.heavy_tokens / statistics.fmean(self.light_tokens)

    @property
    def p99_ratio(self) -> float:
        """How many times as long a light tenant's slowest pairs in a hundred take beside a heavy one."""
        return p99(self.beside_heavy_s) / p99(self.all_light_s)


def jain_index(served: Sequence[float]) -> float:
    """Returns (sum x)^2 / (n sum x^2), between 1/n and 1."""
    return sum(served) ** 2 / (len(served) * sum(each * each for each in served))


def p99(values: Sequence[float]) -> float:
    """Returns the 99th percentile of at least two values."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


async def measure_fairness(target: str, hidden_size: int, split_layer: int, seconds: float) -> Fairness:
    """Lets light tenants talk with and without a heavy one, in turns of `seconds`, until there is enough."""
    light = open_tenants(target, _NUM_LIGHT, hidden_size, split_layer)
    heavy = [
        Tenant(target, "heavy", hidden_size=hidden_size, seed=1000 + index, split_layer=split_layer)
        for index in range(_NUM_HEAVY_CONVERSATIONS)
    ]
    await warm_up([*light, *heavy], _SIZE)
    beside, alone = list[Round](), list[Round]()
    while min(_num_light_pairs(beside), _num_light_pairs(alone)) < _MIN_PAIRS:
        print(f"fairness: round {len(beside) + 1}", file=sys.stderr, flush=True)
        beside.append(await run_for([*light, *heavy], _SIZE, seconds))
        alone.append(await run_for([*light, heavy[0]], _SIZE, seconds))
        if len(beside) == _MAX_ROUNDS:
            raise RuntimeError(
                f"fairness: got {_num_light_pairs(beside)} and {_num_light_pairs(alone)} pairs in "
                f"{_MAX_ROUNDS} rounds, expected {_MIN_PAIRS}; give rounds more seconds"
            )
    await close_all([*light, *heavy])
    return Fairness(
        light_tokens=[_tokens(beside, [index]) for index in range(_NUM_LIGHT)],
        heavy_tokens=_tokens(beside, range(_NUM_LIGHT, _NUM_LIGHT + _NUM_HEAVY_CONVERSATIONS)),
        beside_heavy_s=_light_latencies_s(beside),
        all_light_s=_light_latencies_s(alone),
    )


def _tokens(rounds: Sequence[Round], conversations: Sequence[int]) -> int:
    return sum(
        cost.tokens for done in rounds for conversation in conversations for cost in done.costs[conversation]
    )


def _light_latencies_s(rounds: Sequence[Round]) -> list[float]:
    return [cost.latency_s for done in rounds for costs in done.costs[:_NUM_LIGHT] for cost in costs]


def _num_light_pairs(rounds: Sequence[Round]) -> int:
    return len(_light_latencies_s(rounds))
