"""What came of a study, as tables."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from student_client.study_config import DEFAULT_ROLE
from student_client.study_grid import Grid
from student_client.study_statistics import (
    best_baseline,
    difference,
    headline,
    mean,
    names_of,
    paired,
    places_of,
    select,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from student_client.study_config import StudyConfig
    from student_client.study_statistics import Difference, Line, Mean

__all__ = [
    "Comparison",
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
    lines = _in_order(study, lines)
    best = _against_the_best(study, lines)
    tables = [best] if best.rows else []
    tables += [_means(select(lines, task=task), task) for task in names_of(lines, "task")]
    comparisons = comparisons_of(study)
    if comparisons and lines:
        tables.append(_differences(lines, comparisons))
    costs = [_costs(select(lines, task=task), task, study.none) for task in names_of(lines, "task")]
    return [*tables, *costs]


def _in_order(study: StudyConfig, lines: Sequence[Line]) -> list[Line]:
    """Returns the lines as the study names tasks, labels and methods, those that it does not name last."""

    def place(line: Line) -> tuple[int, ...]:
        task = study.tasks.get(line["task"])
        labels = task.labels if task else ()
        return (
            _index(line["task"], list(study.tasks)),
            _index(line["labels"], labels),
            _index(line["method"], list(study.methods)),
        )

    return sorted(lines, key=place)


def _index(value: object, values: Sequence[object]) -> int:
    return values.index(value) if value in values else len(values)


def _against_the_best(study: StudyConfig, lines: Sequence[Line]) -> Grid:
    has_students = len(names_of(lines, "student")) > 1
    rows = []
    for cells in places_of(lines) if study.ours else []:
        best = best_baseline(cells, str(study.ours), study.baselines)
        if best is not None:
            place = [cells[0]["task"], "all" if cells[0]["labels"] is None else str(cells[0]["labels"])]
            place += [cells[0]["student"]] if has_students else []
            means = {
                name: mean_text(select(cells, method=name)) for name in (study.none, best, str(study.ours))
            }
            comparison = _difference_text(cells, Comparison(str(study.ours), best))
            others = means[study.none], f"{best}: {means[best]}", means[str(study.ours)]
            rows.append((*place, *others, comparison))
    heading = ("task", "labels", *(["student"] if has_students else []))
    return Grid(
        f"{study.ours} against the best baseline of each",
        (*heading, study.none, "best baseline", str(study.ours), "paired difference"),
        tuple(rows),
        "The best is chosen by the test results shown, so where several are alike it has had luck. In "
        "brackets the 95 % bootstrap interval; * where it excludes zero.",
    )


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
