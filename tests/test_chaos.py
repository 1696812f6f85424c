"""What a storm is, how it is judged, and a small one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks.chaos import TENANTS, Outcome, run
from benchmarks.chaos_storm import STEPS_A_ROUND, Blow, Wound, script
from benchmarks.chaos_students import Clock

if TYPE_CHECKING:
    from pathlib import Path


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
