"""Hyper-parameters of the study's methods: as many trials for each, judged on validation rows alone.

    python -m examples.study.tune write            # headline.yaml and the spaces below -> tuning.yaml
    preceptor compare examples/study/tuning.yaml
    python -m examples.study.tune choose           # the best of each method, over both tasks

A trial has the same fields on both tasks. The seed of its rows and weights is none of the study's own.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import yaml
from rich.console import Console
from rich.table import Table

from student_client.fleet_config import merged, nested
from student_client.study_results import newest, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SPACES", "best_trials", "sampled", "tuning_study"]

_HERE = Path(__file__).parent
HEADLINE = _HERE / "headline.yaml"
TUNING = _HERE / "tuning.yaml"
NUM_TRIALS = 4
TASKS = {"trec": 500, "movielens-unseen-horror": 500}
SEED = 100
_LEAST_ERROR = 1e-3  # a log of it there must be

_TASK = {"losses.task": [0.1, 0.3, 1.0]}
_KD = {**_TASK, "losses.temperature": [1.0, 2.0, 4.0]}
SPACES: dict[str, dict[str, list[Any]]] = {
    "none": {
        "epochs": [30, 60, 100],
        "optimizer.schedule": ["cosine", "constant"],
        "optimizer.warmup_steps": [20, 100],
    },
    "kd": _KD,
    "kd of labelled rows": {**_KD, "epochs": [30, 100]},
    "kd of a probe": _KD,
    "hint": {**_TASK, "losses.hint": [0.3, 1.0, 3.0]},
    "kd + hint": {**_KD, "losses.hint": [0.1, 0.3, 1.0]},
    "relation": {**_TASK, "losses.relation": [0.3, 1.0, 3.0]},
    "first student, no lessons": _KD,
    "block swap-in": {"talk.swap_probability": [0.2, 0.5, 0.8], "optimizer.codec_lr": [0.001, 0.002, 0.005]},
    "lessons": _KD,
}


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Returns true, of whatever data."""
        del data
        return True


def sampled(space: dict[str, list[Any]], num_trials: int, seed: int) -> list[dict[str, Any]]:
    """Returns the fields of different trials, dotted.

    Args:
        space: choices by field.
        num_trials: how many, at most as many as there are combinations.
        seed: of the sampler.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    num_trials = min(num_trials, math.prod(len(choices) for choices in space.values()))
    found: list[dict[str, Any]] = []
    while len(found) < num_trials:
        trial = study.ask()
        fields = {name: trial.suggest_categorical(name, choices) for name, choices in space.items()}
        if fields not in found:
            found.append(fields)
    return found


def tuning_study(headline: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of the study whose methods are trials of the headline's."""
    methods: dict[str, Any] = {}
    for name, space in SPACES.items():
        for number, fields in enumerate(sampled(space, NUM_TRIALS, seed=0)):
            methods[f"{name} #{number}"] = merged(copy.deepcopy(headline["methods"][name]), nested(fields))
    tasks = {name: {**headline["tasks"][name], "labels": [budget]} for name, budget in TASKS.items()}
    kept = {name: headline[name] for name in ("output", "base", "parallelism")}
    named = {each for task in tasks.values() for each in task["teachers"].values()}
    teachers = {name: source for name, source in headline["teachers"].items() if name in named}
    return {
        "name": "tuning",
        **kept,
        "teachers": teachers,
        "tasks": tasks,
        "methods": methods,
        "seeds": [SEED],
    }


def best_trials(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the best trial of each method by the mean log of the validation error, with all that is known.

    A method's entry has `trial`, `score`, `errors` by task, and `num_trials` that finished on both tasks.

    Args:
        lines: finished cells of the tuning study.
    """
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    for line in lines:
        error = line["valid"] if line["metric"] == "rmse" else 1 - line["valid"]
        errors[line["method"]][line["task"]] = max(error, _LEAST_ERROR)
    best: dict[str, dict[str, Any]] = {}
    for trial, found in errors.items():
        if set(found) != set(TASKS):
            continue
        method, score = trial.rsplit(" #", 1)[0], sum(map(math.log, found.values())) / len(found)
        known = best.setdefault(method, {"score": math.inf, "num_trials": 0})
        known["num_trials"] += 1
        if score < known["score"]:
            known |= {"trial": trial, "score": score, "errors": found}
    return best


def _write() -> None:
    study = tuning_study(yaml.safe_load(HEADLINE.read_text(encoding="utf-8")))
    text = yaml.dump(study, Dumper=_Plain, sort_keys=False, width=110)
    TUNING.write_text("# Written by `python -m examples.study.tune write`, from headline.yaml.\n" + text)


def _choose(results: Path) -> None:
    study = yaml.safe_load(TUNING.read_text(encoding="utf-8"))
    lines = newest(read_lines(results))
    best = best_trials(line for line in lines if line["method"] in study["methods"] and line["seed"] == SEED)
    table = Table("method", f"finished, of {NUM_TRIALS}", "best", *TASKS, "fields")
    for name in SPACES:
        if name in best:
            trial = best[name]["trial"]
            numbers = [f"{best[name]['errors'][task]:.4f}" for task in TASKS]
            finished = str(best[name]["num_trials"])
            table.add_row(name, finished, trial, *numbers, json.dumps(study["methods"][trial]))
    Console(width=200).print(table)


def main() -> None:
    """Writes the study of trials, or chooses from what came of it."""
    whole = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=whole)
    parser.add_argument("action", choices=["write", "choose"])
    parser.add_argument("--results", type=Path, default=Path("out/study-tuning/results.jsonl"))
    asked = parser.parse_args()
    if asked.action == "write":
        _write()
    else:
        _choose(asked.results)


if __name__ == "__main__":
    main()
