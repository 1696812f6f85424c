"""Measures how much a tenant's reply and gradients depend on who else is served, and what independence costs.

Each tenant talks alone first, then all at the same time; the receipts tell whether they really shared passes.
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.pairs import SIZES, Size, close_all, num_pairs_for, open_tenants, run_round, warm_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from benchmarks.pairs import Tenant
    from student_client.turns import ForwardAnswer, GradientsAnswer

__all__ = ["Exactness", "measure_exactness"]

_NUM_TENANTS = 16
_NUM_ROUNDS = 5
# Turns of a single position too: a product of one row is computed in another order than one of many.
_MIXED = [Size(1 + index % 8, 1 + index % 4) for index in range(_NUM_TENANTS)]
_MIXES = [[SIZES["small"]] * _NUM_TENANTS, [SIZES["medium"]] * _NUM_TENANTS, _MIXED]


@dataclass(frozen=True)
class Difference:
    """What talking at the same time as others changed.

    Attributes:
        max_relative: the largest |a - b| / |b|, of the norms of a tensor, of all tensors.
        max_num_tenants: the most tenants that shared a pass.
    """

    max_relative: float
    max_num_tenants: int


@dataclass(frozen=True)
class Exactness:
    """Attributes say what the two modes gave; `throughput_ratio` is deterministic over default."""

    default: Difference
    deterministic: Difference
    throughput_ratio: float


async def measure_exactness(target: str, hidden_size: int, split_layer: int, seconds: float) -> Exactness:
    """Compares both modes of a server that computes in float32.

    Raises:
        RuntimeError: no pass was shared, so nothing was compared.
    """
    by_mode = {
        deterministic: open_tenants(
            target, _NUM_TENANTS, hidden_size, split_layer, deterministic=deterministic
        )
        for deterministic in (False, True)
    }
    default, deterministic = [await _compare(tenants) for tenants in by_mode.values()]
    if default.max_num_tenants < 2:
        raise RuntimeError("num_tenants of all receipts: got 1, expected some passes to be shared")
    ratio = await _throughput_ratio(by_mode[True], by_mode[False], seconds)
    for tenants in by_mode.values():
        await close_all(tenants)
    return Exactness(default, deterministic, ratio)


async def _compare(tenants: Sequence[Tenant]) -> Difference:
    worst, most = 0.0, 0
    for mix in _MIXES:
        for tenant, size in zip(tenants, mix, strict=True):
            tenant.prepare(size)
        alone = [await tenant.pair(size) for tenant, size in zip(tenants, mix, strict=True)]
        for _ in range(_NUM_ROUNDS):
            together = await asyncio.gather(
                *(tenant.pair(size) for tenant, size in zip(tenants, mix, strict=True))
            )
            for first, second in zip(together, alone, strict=True):
                worst = max(worst, _relative_difference(_tensors(*first), _tensors(*second)))
                most = max(most, *(answer.receipt.num_tenants for answer in first))
    return Difference(worst, most)


def _tensors(reply: ForwardAnswer, gradients: GradientsAnswer) -> dict[str, Tensor]:
    message = {} if gradients.message is None else {"message": gradients.message}
    return {**reply.values, **message, **gradients.codec}


def _relative_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Returns the largest difference of any tensor; 0 means the same bits."""
    if first.keys() != second.keys():
        raise RuntimeError(f"tensors: got {sorted(first)}, expected {sorted(second)}")
    differences = []
    for name, tensor in first.items():
        difference = float((tensor.double() - second[name].double()).norm())
        differences.append(difference / float(second[name].double().norm()) if difference else 0.0)
    return max(differences)


async def _throughput_ratio(tenants: Sequence[Tenant], others: Sequence[Tenant], seconds: float) -> float:
    """Returns how many times as many small pairs a second `tenants` do as `others`; both take turns."""
    size = SIZES["small"]
    rates: tuple[list[float], list[float]] = [], []
    num_pairs = [num_pairs_for(seconds, await warm_up(each, size), len(each)) for each in (tenants, others)]
    for _ in range(_NUM_ROUNDS):
        for side, each in enumerate((tenants, others)):
            rates[side].append((await run_round(each, size, num_pairs[side])).pairs_per_s)
    return statistics.median(rates[0]) / statistics.median(rates[1])
