"""What the benchmarks compute of what they measured."""

from __future__ import annotations

import pytest

from benchmarks.memory import Memory
from benchmarks.pairs import SIZES, PairCost, Round, num_pairs_for, tensors_of
from benchmarks.tenants_fairness import Fairness, jain_index, p99
from benchmarks.tenants_throughput import Cell, Measurements


def _cost(
    latency_s: float = 0.1, *, retained: bool = True, num_tenants: tuple[int, int] = (1, 1)
) -> PairCost:
    return PairCost(latency_s, 16, retained, num_tenants)


def test_jains_index_is_1_for_equals_and_1_over_n_for_one_winner() -> None:
    assert jain_index([5, 5, 5, 5]) == 1.0
    assert jain_index([7, 0, 0, 0]) == 0.25


def test_p99_lies_between_the_two_largest_of_a_hundred() -> None:
    assert 98.0 < p99([float(value) for value in range(100)]) < 99.0


def test_fairness_compares_the_slowest_pairs() -> None:
    fairness = Fairness([10, 10], 50, beside_heavy_s=[0.2] * 100, all_light_s=[0.1] * 100)
    assert fairness.p99_ratio == pytest.approx(2.0)
    assert fairness.heavy_share == 5.0


def test_a_round_counts_the_pairs_of_all_conversations() -> None:
    done = Round(2.0, [[_cost(), _cost()], [_cost()]])
    assert done.pairs_per_s == 1.5
    assert len(done.all_costs) == 3


@pytest.mark.parametrize(("rate", "expected"), [(100.0, 12), (0.1, 1)])
def test_a_round_has_at_least_one_pair_a_tenant(rate: float, expected: int) -> None:
    assert num_pairs_for(2.0, rate, 16) == expected


def test_measurements_give_medians_ratios_and_shares() -> None:
    cell, measured = Cell(16, "small"), Measurements()
    measured.rates["ours"][cell] = [40.0, 44.0, 1.0]
    measured.rates["serial"][cell] = [10.0, 11.0, 9.0]
    measured.costs[cell] = [_cost(num_tenants=(16, 8)), _cost(retained=False, num_tenants=(8, 8))]
    assert measured.ratio(cell) == pytest.approx(4.0)
    assert measured.retained_share(cell) == 0.5
    assert measured.mean_num_tenants(cell) == (12.0, 8.0)


def test_what_was_not_measured_is_none() -> None:
    cell, measured = Cell(64, "large"), Measurements()
    assert measured.pairs_per_s("dedicated", cell) is None
    assert measured.ratio(cell) is None
    assert measured.retained_share(cell) is None


def test_memory_compares_what_teachers_add() -> None:
    assert Memory(tenants=100, dedicated=900, ours=300).ratio == 4.0


def test_sizes_are_those_that_are_published() -> None:
    shapes = {name: tuple(tensors_of(size, 0)[0].shape) for name, size in SIZES.items()}
    assert shapes == {"small": (8, 1, 32), "medium": (8, 4, 32), "large": (32, 64, 32)}
