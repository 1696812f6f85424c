"""The demo's parts that need neither network nor Ray."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from rich.console import Console

from examples.movielens.data import Ratings, Split
from examples.movielens.demo import Recipe, Team, run_config
from examples.movielens.references import bias_rmse
from examples.movielens.report import Cell, draw_plot, print_table, write_results

if TYPE_CHECKING:
    from student_client.config import TrainConfig

CELLS = [
    Cell("Horror", "alone", {"test": 1.1, "waiting_s": 0.0}),
    Cell("Horror", "talking", {"test": 1.0, "waiting_s": 2.0}),
    Cell("Horror", "the teacher", {"test": 0.9}),
    Cell("Sci-Fi", "alone", {"test": 1.2, "waiting_s": 0.0}),
    Cell("Sci-Fi", "talking", {"test": 1.3, "waiting_s": 1.0}),
    Cell("Sci-Fi", "the teacher", {"test": 0.8}),
]


def configs() -> dict[str, TrainConfig]:
    recipe = Recipe()
    team = Team("Children's", Path("data"), {"num_users": 944, "num_items": 1683, "mean_rating": 3.4}, {})
    return {
        name: run_config(recipe, team, name, output=Path("out"), address="preceptor://127.0.0.1:1", seed=0)
        for name in recipe.conditions
    }


def test_the_conditions_differ_in_their_losses_only() -> None:
    dumps = [config.model_dump(exclude={"losses", "name"}) for config in configs().values()]
    assert all(dump == dumps[0] for dump in dumps)


def test_the_conditions_are_what_their_names_say() -> None:
    alone, told, talking, both = (configs()[name].losses for name in Recipe().conditions)
    assert not alone.needs_teacher
    assert told.kd > 0
    assert not told.talks
    assert talking.talks
    assert talking.kd == 0
    assert both.talks
    assert both.kd > 0


def test_a_runs_name_is_a_folder_name() -> None:
    assert configs()["talking + KD"].name == "children-s-talking---kd"


def test_the_table_marks_the_best_student_and_not_the_teacher() -> None:
    text = io.StringIO()
    print_table(CELLS, Console(file=text, width=120, force_terminal=True))
    lines = text.getvalue()
    assert "\x1b[1m1.0000" in lines
    assert "\x1b[1m1.2000" in lines
    assert "\x1b[1m0.8000" not in lines
    assert "1.1500" in lines


def test_the_plot_and_the_results_are_written(tmp_path: Path) -> None:
    draw_plot(CELLS, tmp_path / "plots" / "results.png")
    assert (tmp_path / "plots" / "results.png").read_bytes().startswith(b"\x89PNG")
    write_results(CELLS, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())[1]["facts"]["test"] == 1.0


def test_biases_are_fitted_on_the_training_ratings() -> None:
    user = torch.arange(20).repeat_interleave(20)
    item = torch.arange(20).repeat(20)
    rating = 3 + 0.05 * (user % 5) - 0.1 * (item % 3)
    ratings = Ratings(user, item, rating)
    rows = torch.randperm(400)
    split = Split(*(ratings.select(part) for part in (rows[:300], rows[300:350], rows[350:])))
    assert bias_rmse(split) < 0.3 * float(rating.std())


def test_a_missing_condition_is_an_error() -> None:
    with pytest.raises(KeyError):
        run_config(Recipe(), Team("x", Path(), {}, {}), "none", output=Path(), address="127.0.0.1:1", seed=0)
