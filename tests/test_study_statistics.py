"""What a study's numbers are, against cases whose answer is known."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from student_client.study_statistics import difference, headline, mean, names_of, paired
from tests.toy_study import line_of

BASELINES = ("none", "kd")


def lines_with(gains: dict[str, float], noise: float = 0.001, **changes: Any) -> list[dict[str, Any]]:
    """Five seeds of methods that are better than 0.5 by so much, in either metric."""
    generator = random.Random(0)
    sign = -1 if changes.get("metric") == "rmse" else 1
    return [
        line_of(method, 0.5 + sign * (gain + seed / 100 + generator.gauss(0, noise)), seed=seed, **changes)
        for seed in range(5)
        for method, gain in gains.items()
    ]


def test_a_mean_has_its_standard_error_over_cells() -> None:
    found = mean([1.0, 2.0, 3.0, 4.0])
    assert (found.value, found.num) == (2.5, 4)
    assert found.standard_error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert math.isnan(mean([1.0]).standard_error)
    assert mean([]).num == 0


def test_a_bootstrap_interval_is_about_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400).tolist()
    found = difference(values)
    assert found.low == pytest.approx(found.value - 1.96 * found.standard_error, abs=0.02)
    assert found.high == pytest.approx(found.value + 1.96 * found.standard_error, abs=0.02)
    assert difference(values) == found
    assert found.is_better


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(2)
    found = [difference(generator.normal(0.0, 1.0, size=25).tolist()) for _ in range(200)]
    covered = sum(each.low <= 0 <= each.high for each in found)
    assert 170 <= covered <= 199  # 95 %, a little less of few values


def test_few_pairs_prove_nothing() -> None:
    one = difference([0.4])
    assert (one.value, one.num_pairs) == (0.4, 1)
    assert not one.excludes_zero
    assert math.isnan(difference([]).value)
    worse = difference([-0.4, -0.5] * 2 + [-0.4])
    assert worse.excludes_zero
    assert not difference([-0.4, -0.5] * 2).excludes_zero
    assert not worse.is_better


def test_differences_are_of_cells_that_differ_in_the_method_only() -> None:
    lines = [
        line_of("ours", 0.9, seed=0),
        line_of("kd", 0.7, seed=0),
        line_of("ours", 0.8, seed=1),
        line_of("kd", 0.1, seed=2),
        line_of("ours", 0.6, labels=None),
        line_of("kd", 0.5, labels=None),
    ]
    assert paired(lines, "ours", "kd") == pytest.approx([0.2, 0.1])


def test_less_error_is_better() -> None:
    lines = [line_of("ours", 0.8, metric="rmse"), line_of("kd", 1.0, metric="rmse")]
    assert paired(lines, "ours", "kd") == pytest.approx([0.2])


def test_labels_are_in_order_and_all_of_them_last() -> None:
    lines = [line_of("none", 0.5, labels=labels) for labels in (500, None, 100)]
    assert names_of(lines, "labels") == [100, 500, None]


def test_a_task_is_won_against_every_baseline_or_not_at_all() -> None:
    lines = [
        *lines_with({"ours": 0.1, "kd": 0.05, "none": 0.0}),
        *lines_with({"ours": 0.1, "kd": 0.0999, "none": 0.0}, noise=0.01, task="close"),
        *lines_with({"ours": 0.1, "kd": 0.02, "none": 0.0}, task="ratings", metric="rmse"),
    ]
    found = headline(lines, "ours", BASELINES, [], "none")
    assert (found.tasks, found.seeds, found.tasks_won) == (3, 5, 2)


def test_the_worst_deficit_is_against_the_best_baseline_of_a_task_and_its_labels() -> None:
    better = lines_with({"ours": 0.1, "kd": 0.05, "none": 0.0})
    assert (headline(better, "ours", BASELINES, [], "none").worst_deficit_se or 0) < 0
    worse = [*better, *lines_with({"ours": 0.03, "kd": 0.05, "none": 0.0}, labels=None)]
    found = headline(worse, "ours", BASELINES, [], "none").worst_deficit_se
    by_hand = difference(paired(lines_with({"ours": 0.03, "kd": 0.05, "none": 0.0}), "ours", "kd"))
    assert found == pytest.approx(-by_hand.value / by_hand.standard_error)
    assert found is not None
    assert found > 10
    assert headline([line_of("ours", 0.5)], "ours", BASELINES, [], "none").worst_deficit_se is None


def test_two_seeds_that_lose_as_much_by_chance_have_no_error_to_count_in() -> None:
    def behind(*seeds: int) -> float | None:
        lines = [
            line_of(name, test, seed=seed) for seed in seeds for name, test in (("ours", 0.5), ("kd", 0.6))
        ]
        ahead = lines_with({"ours": 0.1, "kd": 0.05}, task="other")
        return headline([*lines, *ahead], "ours", ["kd"], [], "none").worst_deficit_se

    assert behind(0, 1) is None
    assert behind(*range(5)) is None


def test_a_random_teacher_is_judged_where_it_is_furthest_from_none() -> None:
    lines = [
        *lines_with({"fooled": 0.0001, "none": 0.0}),
        *lines_with({"fooled": -0.05, "none": 0.0}, task="other"),
    ]
    found = headline(lines, None, [], ["fooled"], "none")
    assert (found.random_teacher_delta_se or 0) > 10
    assert found.tasks_won == 0
    same = [line_of(name, 0.5, seed=seed) for seed in range(3) for name in ("fooled", "none")]
    assert headline(same, None, [], ["fooled"], "none").random_teacher_delta_se == 0
    assert headline(same, None, [], [], "none").random_teacher_delta_se is None
    uncounted = [
        line_of(name, test, seed=seed, task="third")
        for seed in (0, 1)
        for name, test in (("fooled", 0.8), ("none", 0.5))
    ]
    assert headline([*lines, *uncounted], None, [], ["fooled"], "none").random_teacher_delta_se is None
