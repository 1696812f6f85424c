"""The demo's results: a table for the terminal, a plot, a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

__all__ = ["Cell", "draw_plot", "print_table", "write_results"]

# Columns that are no student's.
REFERENCES = ("biases only", "the teacher")
COMPARED = "`biases only` (no network, the team's own ratings) and `the teacher` (all ratings) are"
_COLORS = ("#94a3b8", "#f59e0b", "#0f766e", "#1e3a8a", "#e2e8f0", "#cbd5e1")


@dataclass(frozen=True)
class Cell:
    """One team's result under one condition; `facts` are those of `student_client.train.TrainResult`."""

    team: str
    condition: str
    facts: dict[str, Any]

    @property
    def test_rmse(self) -> float:
        """Root mean squared error on the team's test ratings, in stars."""
        return float(self.facts["test"])


def print_table(cells: Sequence[Cell], console: Console) -> None:
    """Prints test errors, a team a row and a condition a column, the best student of each row in bold."""
    teams, conditions = _axes(cells)
    table = Table(title="test RMSE in stars (lower is better)")
    table.add_column("team")
    for condition in conditions:
        table.add_column(condition, justify="right")
    rows = {team: [_value(cells, team, condition) for condition in conditions] for team in teams}
    rows["mean"] = [sum(column) / len(column) for column in zip(*rows.values(), strict=True)]
    for team, values in rows.items():
        best = min(value for value, name in zip(values, conditions, strict=True) if name not in REFERENCES)
        shown = [f"[bold]{value:.4f}[/]" if value == best else f"{value:.4f}" for value in values]
        table.add_row(team, *shown)
    console.print(table)
    waited = sum(cell.facts.get("waiting_s", 0) for cell in cells)
    console.print(
        f"one seed, one split: differences of a few thousandths mean nothing. {COMPARED} for comparison; "
        f"students waited {waited:.0f} s for the teacher in all."
    )


def draw_plot(cells: Sequence[Cell], path: Path) -> None:
    """Draws the test errors as bars by team and condition into a PNG file."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.use("Agg")
    teams, conditions = _axes(cells)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    width = 0.8 / len(conditions)
    for number, condition in enumerate(conditions):
        values = [_value(cells, team, condition) for team in teams]
        places = [place + (number - (len(conditions) - 1) / 2) * width for place in range(len(teams))]
        bars = axes.bar(places, values, width * 0.92, label=condition, color=_COLORS[number % len(_COLORS)])
        axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=2)
    lowest, highest = (bound(cell.test_rmse for cell in cells) for bound in (min, max))
    margin = max(highest - lowest, 0.01)
    axes.set_ylim(lowest - 0.5 * margin, highest + 0.25 * margin)  # the differences are what is compared
    axes.set_xticks(range(len(teams)), teams)
    axes.set_ylabel("test RMSE in stars (axis does not start at 0)")
    axes.set_title("Students of one served teacher: lower is better")
    axes.legend(ncols=len(conditions), fontsize=8, frameon=False, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_results(cells: Sequence[Cell], path: Path) -> None:
    """Writes all cells as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(cell) for cell in cells], indent=2))


def _axes(cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    """Returns the teams and the conditions; teams by name, conditions in the order they were run."""
    conditions = list(dict.fromkeys(cell.condition for cell in cells))
    return sorted({cell.team for cell in cells}), conditions


def _value(cells: Sequence[Cell], team: str, condition: str) -> float:
    return next(cell.test_rmse for cell in cells if (cell.team, cell.condition) == (team, condition))
