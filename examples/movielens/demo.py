"""The demo: one foundation recommender served, three teams' students trained against it.

    python -m examples.movielens.demo        (or: make demo)

Fetches MovieLens-100K, trains the foundation model on the training ratings of all genres (cached), serves it,
and trains a fleet, each team's student alone, by distillation, by talking, and by both. Prints a
table of test errors, draws a plot, and stops everything it started, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from rich.console import Console
from rich.live import Live
from safetensors.torch import load_model

from examples.movielens.data import TERMS, FetchError, fetch, read, split_ratings, team_split, write_team
from examples.movielens.foundation import train_foundation
from examples.movielens.models import Recommender
from examples.movielens.references import bias_rmse, teacher_rmse
from examples.movielens.report import Cell, draw_plot, print_table, write_results
from services.teacher.config import ModuleConfig, ServiceConfig
from services.teacher.local import ServeError, serving
from student_client.config import TrainConfig
from student_client.errors import TeacherError
from student_client.fleet_config import FleetConfig, merged
from student_client.fleet_table import fleet_table

if TYPE_CHECKING:
    from examples.movielens.data import MovieLens, Split
    from examples.movielens.foundation import Foundation

__all__ = ["Recipe", "fleet_config", "main", "prepare_team", "run_config", "service_config"]

_FOLDER = Path(__file__).resolve().parent
_ROOT = _FOLDER.parents[1]
console = Console()


@dataclass(frozen=True)
class Team:
    """A team and its share of the data.

    Attributes:
        name: its genre.
        folder: holds its train.csv, valid.csv and test.csv.
        student_kwargs: what its student's size and mean rating follow from.
        references: test errors that its students are compared with, by name.
    """

    name: str
    folder: Path
    student_kwargs: dict[str, Any]
    references: dict[str, float]


class Recipe:
    """The teams, the conditions and the base config of `recipe.yaml`.

    Attributes:
        teams: genres.
        conditions: what each changes in the base config, by the condition's name.
        base: a `TrainConfig` without name, data and teacher's address.
        port: of the teacher.
        parallelism: students that are trained at a time.
    """

    def __init__(self, path: Path = _FOLDER / "recipe.yaml") -> None:
        content = yaml.safe_load(path.read_text())
        self.teams: list[str] = content["teams"]
        self.conditions: dict[str, dict[str, Any]] = content["conditions"]
        self.base: dict[str, Any] = content["base"]
        self.port: int = content["port"]
        self.parallelism: int = content["parallelism"]


def service_config(foundation: Foundation, movielens: MovieLens, port: int) -> ServiceConfig:
    """Returns the teacher's config: the foundation model, family `module`."""
    model = ModuleConfig(
        factory="examples.movielens.models:Recommender",
        kwargs=foundation.kwargs,
        weights=foundation.weights,
        inputs={"user": f"int64[*]<{movielens.num_users}", "item": f"int64[*]<{movielens.num_items}"},
    )
    return ServiceConfig(
        name="foundation-recommender",
        auth="none",  # it listens on loopback
        model=model,
        port=port,
        drain_s=0.5,
        num_cpus=0.5,
        python_path=(_ROOT,),
    )


def run_config(
    recipe: Recipe, team: Team, condition: str, *, output: Path, address: str, seed: int
) -> TrainConfig:
    """Returns the config of one team's run under one condition."""
    content = merged(recipe.base, recipe.conditions[condition])
    content["student"] = merged(content["student"], {"kwargs": team.student_kwargs})
    content["name"] = _run_name(team, condition)
    tables = {name: team.folder / f"{name}.csv" for name in ("train", "valid", "test")}
    content["data"] = tables | content["data"]
    content |= {"output": output, "seed": seed, "teacher": {"address": address}, "python_path": [_ROOT]}
    return TrainConfig.model_validate(content)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")


def main() -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/movielens"), help="data and foundation model"
    )
    parser.add_argument("--output", type=Path, default=Path("out/movielens"), help="runs, table and plot")
    parser.add_argument("--seed", type=int, default=0, help="of the students")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start_s = time.monotonic()
    try:
        cells = _run(arguments.cache.resolve(), arguments.output.resolve(), arguments.seed)
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started is stopped")
        return 130
    except (FetchError, ServeError, TeacherError, RuntimeError, ValueError, OSError) as error:
        console.print(f"[bold red]error:[/] {error}")
        return 1
    print_table(cells, console)
    write_results(cells, arguments.output / "results.json")
    draw_plot(cells, arguments.output / "results.png")
    console.print(f"plot: {arguments.output / 'results.png'}, done in {time.monotonic() - start_s:.0f} s")
    return 0


def _run(cache: Path, output: Path, seed: int) -> list[Cell]:
    recipe = Recipe()
    console.print(f"[dim]{TERMS}[/]")
    movielens = read(fetch(cache))
    split = split_ratings(movielens.ratings)
    foundation = train_foundation(movielens, split, cache / "foundation.safetensors", console=console)
    metrics = foundation.metrics
    console.print(
        f"foundation model: test RMSE {metrics.test_rmse:.4f}, {metrics.train_s:.0f} s of training"
        + (" (cached)" if foundation.reused else "")
    )
    teams = [prepare_team(name, movielens, split, foundation, output) for name in recipe.teams]
    with contextlib.ExitStack() as stack:
        with console.status("starting Ray and the teacher"):
            address = stack.enter_context(
                serving(service_config(foundation, movielens, recipe.port), jobs=True)
            )
        console.print(f"the teacher is served at {address}")
        cells = _train_all(recipe, teams, output / "runs", address, seed)
    references = [
        Cell(team.name, name, {"test": value}) for team in teams for name, value in team.references.items()
    ]
    return [*cells, *references]


def prepare_team(name: str, movielens: MovieLens, split: Split, foundation: Foundation, output: Path) -> Team:
    """Writes a team's tables and computes what its students are compared with."""
    share = team_split(movielens, split, name)
    folder = output / "data" / _slug(name)
    write_team(folder, share)
    console.print(f"team {name}: {len(share.train)} ratings to learn from, {len(share.test)} to be tested on")
    kwargs = {
        "num_users": movielens.num_users,
        "num_items": movielens.num_items,
        "mean_rating": float(share.train.rating.mean()),
    }
    teacher = Recommender(**foundation.kwargs)
    load_model(teacher, foundation.weights)
    references = {"biases only": bias_rmse(share), "the teacher": teacher_rmse(teacher, share.test)}
    return Team(name, folder, kwargs, references)


def fleet_config(recipe: Recipe, teams: list[Team], *, output: Path, address: str, seed: int) -> FleetConfig:
    """Returns the fleet: each team's student under each condition."""
    students = [
        run_config(recipe, team, condition, output=output, address=address, seed=seed)
        for condition in recipe.conditions
        for team in teams
    ]
    content = {
        "name": "movielens",
        "output": output,
        "parallelism": recipe.parallelism,
        "students": [student.model_dump(mode="json", exclude={"output"}) for student in students],
    }
    return FleetConfig.of(content, _ROOT)


def _train_all(recipe: Recipe, teams: list[Team], output: Path, address: str, seed: int) -> list[Cell]:
    """Trains the fleet, each student a job of the Ray that serves the teacher."""
    from student_client.fleet import Fleet
    from student_client.fleet_jobs import RayJobs, job_server

    config = fleet_config(recipe, teams, output=output, address=address, seed=seed)
    with job_server(None) as (url, _), Live(console=console, auto_refresh=False) as live:
        jobs = RayJobs(url, config.job, config.folder / "configs", python=sys.executable)
        fleet = Fleet(config, jobs, fresh=True)
        done = fleet.run(lambda views: live.update(fleet_table(config.name, views), refresh=True))
    if not done:
        raise RuntimeError(f"not all students are done: see the table; logs are in {config.folder}")
    results = {run.name: json.loads((run.folder / "result.json").read_text()) for run in config.runs}
    return [
        Cell(team.name, condition, results[_run_name(team, condition)])
        for condition in recipe.conditions
        for team in teams
    ]


def _run_name(team: Team, condition: str) -> str:
    return f"{_slug(team.name)}-{_slug(condition)}"


if __name__ == "__main__":
    sys.exit(main())
