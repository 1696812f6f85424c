from __future__ import annotations

from typing import Any

import pytest
import yaml

pytest.importorskip("optuna")

from examples.study import tune
from student_client.study_config import StudyConfig


def _line(trial: str, task: str, valid: float) -> dict[str, Any]:
    metric = "accuracy" if task == "trec" else "rmse"
    return {"method": trial, "task": task, "metric": metric, "valid": valid}


def test_every_method_has_as_many_trials_all_different() -> None:
    for space in tune.SPACES.values():
        trials = tune.sampled(space, tune.NUM_TRIALS, seed=0)
        assert len(trials) == tune.NUM_TRIALS
        assert len({repr(fields) for fields in trials}) == tune.NUM_TRIALS
        for fields in trials:
            assert all(fields[name] in space[name] for name in space)


def test_trials_end_with_the_combinations() -> None:
    assert sorted(fields["a"] for fields in tune.sampled({"a": [1, 2]}, 6, seed=0)) == [1, 2]


def test_the_tuning_study_is_of_the_headlines_methods_and_of_no_seed_of_its() -> None:
    headline = yaml.safe_load(tune.HEADLINE.read_text(encoding="utf-8"))
    study = StudyConfig.load(tune.TUNING)
    assert set(study.seeds).isdisjoint(headline["seeds"])
    assert {name.rsplit(" #", 1)[0] for name in study.methods} <= set(headline["methods"])
    assert set(headline["baselines"]) | {headline["ours"]} <= set(tune.SPACES)
    assert yaml.safe_load(tune.TUNING.read_text(encoding="utf-8")) == tune.tuning_study(headline)


def test_the_best_trial_has_the_lowest_validation_error_over_both_tasks() -> None:
    other = "movielens-unseen-horror"
    lines = [
        _line("kd #0", "trec", 0.8),
        _line("kd #0", other, 1.1),
        _line("kd #1", "trec", 0.9),  # half the error of #0
        _line("kd #1", other, 1.2),
        _line("kd #2", "trec", 1.0),  # but the other task did not finish
        _line("none #0", "trec", 0.5),
        _line("none #0", other, 1.3),
    ]
    best = tune.best_trials(lines)
    assert best["kd"]["trial"] == "kd #1"
    assert best["kd"]["errors"] == {"trec": pytest.approx(0.1), other: 1.2}
    assert best["kd"]["num_trials"] == 2
    assert best["none"]["trial"] == "none #0"


def test_a_task_without_an_error_is_no_error() -> None:
    lines = [_line("kd #0", "trec", 1.0), _line("kd #0", "movielens-unseen-horror", 1.0)]
    assert tune.best_trials(lines)["kd"]["errors"]["trec"] == pytest.approx(1e-3)
