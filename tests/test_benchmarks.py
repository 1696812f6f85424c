"""What the benchmarks compute of what they measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks.chaos import TENANTS, Outcome, run
from benchmarks.chaos_storm import STEPS_A_ROUND, Blow, Wound, script
from benchmarks.chaos_students import Clock
from benchmarks.load import SIZES, PairCost, Round, num_pairs_for, tensors_of
from benchmarks.memory import Memory
from benchmarks.tenants_fairness import Fairness, jain_index, p99
from benchmarks.tenants_throughput import Cell, Measurements

if TYPE_CHECKING:
    from pathlib import Path


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


def test_every_storm_has_the_same_faults_in_another_order() -> None:
    first, second = (script(seed, 3) for seed in (0, 1))
    assert first != second
    assert first == script(0, 3)
    assert len(first) >= 30
    kinds = [sorted((blow.kind, blow.point) for blow in blows) for blows in (first, second)]
    assert kinds[0] == kinds[1]
    assert {point for kind, point in kinds[0] if kind == "replica"} == {
        "before",
        "between",
        "backward",
        "update",
    }


def _saved(losses: list[float], num_steps: int, weight: float = 1.0) -> dict[str, Any]:
    state = {0: {"step": torch.tensor(float(num_steps))}}
    return {
        "losses": losses,
        "optimizer": {"state": state},
        "weights": {"weight": torch.tensor([weight, 2.0])},
    }


def test_a_storm_is_told_by_what_was_lost_done_twice_or_changed() -> None:
    calm = [float(step) for step in range(STEPS_A_ROUND)]

    def outcome(losses: list[float], num_steps: int, weight: float = 1.0) -> Outcome:
        outcome = Outcome(1, [Wound(Blow("cut", "before", 0), 0.5)], came_back=True)
        outcome.add([_saved(losses, num_steps, weight)], [_saved(calm, STEPS_A_ROUND)])
        return outcome

    good = outcome(calm, STEPS_A_ROUND)
    assert good.is_good
    assert good.facts()["recovery_p95_s"] == 0.5
    assert outcome(calm[:-1], STEPS_A_ROUND - 1).turns_lost == 2
    assert outcome(calm, STEPS_A_ROUND + 1).duplicated_effects == 1
    assert outcome([*calm[:-1], 7.0], STEPS_A_ROUND).duplicated_effects == 1
    changed = outcome(calm, STEPS_A_ROUND, weight=1.1)
    assert changed.max_difference == pytest.approx(0.05)
    assert not changed.is_good


@pytest.mark.serve
def test_students_learn_the_same_in_a_small_storm(tmp_path: Path) -> None:
    kinds = [
        ("replica", "backward"),
        ("controller", "before"),
        ("duplicate", "update"),
        ("student", "between"),
    ]
    blows = [Blow(kind, point, number % len(TENANTS)) for number, (kind, point) in enumerate(kinds)]
    outcome = run(tmp_path, blows, Clock(300))
    assert outcome.is_good, outcome
    assert [wound.blow for wound in outcome.wounds] == blows
