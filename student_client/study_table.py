"""What came of a study, as tables: for a terminal, for Markdown and for a page."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from student_client.study_config import DEFAULT_ROLE
from student_client.study_statistics import (
    difference,
    headline,
    mean,
    names_of,
    paired,
    select,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from student_client.study_config import StudyConfig
    from student_client.study_statistics import Difference, Line, Mean

__all__ = [
    "Comparison",
    "Grid",
    "as_html",
    "as_markdown",
    "as_rich",
    "comparisons_of",
    "cost_per_example",
    "grids",
    "in_units",
    "mean_text",
    "summary",
    "unit_of",
]

_PERCENT = 100.0


@dataclass(frozen=True)
class Grid:
    """A table: its title, the headings of its columns, rows of as many cells; `note` says how to read it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two methods whose cells are compared in pairs."""

    method: str
    other: str

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.method} over {self.other}"


def comparisons_of(study: StudyConfig) -> list[Comparison]:
    """Returns what a study compares: `ours` (or all methods) with each baseline, controls with none."""
    subjects = (
        [study.ours]
        if study.ours
        else [name for name in study.methods if name not in (*study.baselines, *study.controls)]
    )
    pairs = [Comparison(method, other) for method in subjects for other in study.baselines if method != other]
    return pairs + [Comparison(control, study.none) for control in study.controls if control != study.none]


def summary(study: StudyConfig, lines: Sequence[Line]) -> dict[str, Any]:
    """Returns what a study comes to, for programs."""
    random = [name for name in study.controls if study.role_of(name) != DEFAULT_ROLE]
    found = asdict(headline(lines, study.ours, study.baselines, random, study.none))
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def grids(study: StudyConfig, lines: Sequence[Line]) -> list[Grid]:
    """Returns all tables of a study.

    Args:
        study: says what is compared.
        lines: of finished cells, each cell once.
    """
    tables = [_means(select(lines, task=task), task) for task in names_of(lines, "task")]
    comparisons = comparisons_of(study)
    if comparisons and lines:
        tables.append(_differences(lines, comparisons))
    costs = [_costs(select(lines, task=task), task, study.none) for task in names_of(lines, "task")]
    return [*tables, *costs]


def _means(lines: Sequence[Line], task: str) -> Grid:
    budgets, students = names_of(lines, "labels"), names_of(lines, "student")
    rows = []
    for method in names_of(lines, "method"):
        for student in students:
            cells = select(lines, method=method, student=student)
            if cells:
                row = [method if len(students) == 1 else f"{method} ({student})"]
                rows.append((*row, *(mean_text(select(cells, labels=labels)) for labels in budgets)))
    metric = lines[0]["metric"]
    unit = "accuracy, %; higher" if metric == "accuracy" else "root mean squared error; lower"
    headings = ("all labels" if labels is None else f"{labels} labels" for labels in budgets)
    return Grid(
        f"{task}: test {unit} is better",
        ("method", *headings),
        tuple(rows),
        "Mean ± standard error over cells (their number).",
    )


def mean_text(cells: Sequence[Line]) -> str:
    """Returns the mean test result of cells of one metric, its standard error and their number."""
    if not cells:
        return ""
    metric = cells[0]["metric"]
    found: Mean = mean([in_units(cell["test"], metric) for cell in cells])
    error = "" if math.isnan(found.standard_error) else f" ± {_number(found.standard_error, metric)}"
    return f"{_number(found.value, metric)}{error} ({found.num})"


def _differences(lines: Sequence[Line], comparisons: Sequence[Comparison]) -> Grid:
    tasks = names_of(lines, "task")
    rows = []
    for each in comparisons:
        cells = [_difference_text(select(lines, task=task), each) for task in tasks]
        rows.append((each.title, *cells))
    return Grid(
        "paired differences",
        ("methods", *tasks),
        tuple(rows),
        "Positive: the first method is better. In brackets the 95 % bootstrap interval over pairs of the "
        "same labels, student and seed, then their number; * where it excludes zero.",
    )


def _difference_text(lines: Sequence[Line], comparison: Comparison) -> str:
    metric = lines[0]["metric"]
    pairs = paired(lines, comparison.method, comparison.other)
    found: Difference = difference([in_units(value, metric) for value in pairs])
    if not found.num_pairs:
        return ""
    low, high = (_number(end, metric, sign=True) for end in (found.low, found.high))
    star = "*" if found.excludes_zero else ""
    return f"{_number(found.value, metric, sign=True)} [{low}, {high}]{star} ({found.num_pairs})"


def _costs(lines: Sequence[Line], task: str, none: str) -> Grid:
    rows = []
    for method in names_of(lines, "method"):
        cells = select(lines, method=method)
        gain = "" if method == none else _difference_text(lines, Comparison(method, none))
        rows.append((method, gain, *(text(cells) for text in _COSTS.values())))
    return Grid(
        f"{task}: cost beside gain",
        ("method", f"gain over {none}", *_COSTS),
        tuple(rows),
        "Gains over all labels. Then what an example costs in training, each time that it is seen: the "
        "teacher's tokens, bytes on the wire, milliseconds of the teacher, and all that pass. At inference "
        f"the student is alone: {_sizes(lines)}.",
    )


def _sizes(lines: Sequence[Line]) -> str:
    """Returns how large and fast students are, beside their teachers."""
    told = []
    for student in names_of(lines, "student"):
        cells = select(lines, student=student)
        speed = mean([cell["student_ms_per_example"] for cell in cells]).value
        told.append(
            f"{student} has {cells[0]['student_parameters']:,} parameters and takes {speed:.3g} ms an example"
        )
    sizes = sorted({line["teacher_parameters"] for line in lines} - {0})
    teachers = [f"its teacher has {' or '.join(f'{size:,}' for size in sizes)} parameters"] if sizes else []
    return "; ".join([*told, *teachers])


def cost_per_example(cell: Line, name: str) -> float:
    """Returns what a training example cost: "tokens", "bytes_sent" and so on of the line's "teacher"."""
    return float(cell["teacher"][name]) / max(int(cell["num_examples"]), 1)


def _mean_of(value: Callable[[Line], float], form: str) -> Callable[[Sequence[Line]], str]:
    def text(cells: Sequence[Line]) -> str:
        return format(mean([value(cell) for cell in cells]).value, form)

    return text


_COSTS: dict[str, Callable[[Sequence[Line]], str]] = {
    "tokens": _mean_of(lambda cell: cost_per_example(cell, "tokens"), ".1f"),
    "bytes sent": _mean_of(lambda cell: cost_per_example(cell, "bytes_sent"), ",.0f"),
    "bytes received": _mean_of(lambda cell: cost_per_example(cell, "bytes_received"), ",.0f"),
    "teacher's ms": _mean_of(lambda cell: 1000 * cost_per_example(cell, "compute_s"), ".3f"),
    "ms in all": _mean_of(lambda cell: 1000 * cell["wall_s"] / max(cell["num_examples"], 1), ".2f"),
}


def in_units(value: float, metric: str) -> float:
    """Returns a result or a difference as people read it: accuracy in percent."""
    return _PERCENT * value if metric == "accuracy" else value


def unit_of(metric: str) -> str:
    """Returns what people read results in."""
    return "accuracy, %" if metric == "accuracy" else "RMSE"


def _number(value: float, metric: str, *, sign: bool = False) -> str:
    """Returns a number with as many digits as mean something."""
    form = f"{'+' if sign else ''}.{1 if metric == 'accuracy' else 3}f"
    return format(value, form)


def as_rich(grid: Grid) -> Table:
    """Returns a table for a terminal."""
    table = Table(title=grid.title, title_justify="left", caption=grid.note or None, caption_justify="left")
    for number, heading in enumerate(grid.headings):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in grid.rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    return table


def as_markdown(grid: Grid) -> str:
    """Returns a table, under its title, as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    alignment = "|" + "|".join(["---"] + ["---:"] * (len(grid.headings) - 1)) + "|"
    parts = [f"## {grid.title}", "", line(grid.headings), alignment, *map(line, grid.rows), ""]
    return "\n".join([*parts, grid.note, ""] if grid.note else parts)


def as_html(grid: Grid) -> str:
    """Returns a table with its caption, in a frame that scrolls where the page is too narrow for it."""
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in grid.headings)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in grid.rows
    )
    title, note = html.escape(grid.title), html.escape(grid.note)
    return (
        f'<div class="table" role="region" aria-label="{title}" tabindex="0"><table>'
        f"<caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="note">{note}</p>'
    )
