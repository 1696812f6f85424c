"""What a study's lines say: means, paired differences with their intervals, and who wins.

Pure: lines in, numbers out. A difference is between cells of the same task, labels, student and seed, and
positive where the first method is better, whatever the metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "Difference",
    "Headline",
    "Mean",
    "best_baseline",
    "difference",
    "headline",
    "mean",
    "names_of",
    "oriented",
    "paired",
    "places_of",
    "select",
]

NUM_RESAMPLES = 10_000
MIN_PAIRS = 5  # of fewer an interval says nothing
_CONFIDENCE = 0.95
_SEED = 0
_NO_ERROR = 1e-12  # that of differences that are all alike
_CHUNK = 1000  # resamples at a time: some 10,000 pairs still fit in memory
_PAIRED_BY = ("task", "labels", "student", "seed")

Line = dict[str, Any]


@dataclass(frozen=True)
class Mean:
    """A mean over cells.

    Attributes:
        value: the mean.
        standard_error: of it, over cells; NaN of one cell.
        num: cells.
    """

    value: float
    standard_error: float
    num: int


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences; positive: better.

    Attributes:
        value: the mean.
        standard_error: of it; NaN of one pair.
        low: the lower end of the 95 % bootstrap interval (percentiles).
        high: its upper end.
        num_pairs: pairs.
    """

    value: float
    standard_error: float
    low: float
    high: float
    num_pairs: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero, of enough pairs to mean it.

        That of a few lies between the least and the most of them, and n pairs are all on one side by chance
        once in 2^(n - 1).
        """
        return self.num_pairs >= MIN_PAIRS and (self.low > 0 or self.high < 0)

    @property
    def is_better(self) -> bool:
        """Whether the whole interval says that the first method is better."""
        return self.excludes_zero and self.value > 0


@dataclass(frozen=True)
class Headline:
    """What a study comes to.

    Attributes:
        tasks: how many there are.
        seeds: how many there are.
        tasks_won: tasks where `ours` is better than every baseline, with an interval that excludes zero.
        worst_deficit_se: the most that `ours` is worse than the best baseline of a (task, labels, student),
            in standard errors of that difference; 0 or less: it never is. None: no error says.
        random_teacher_delta_se: the difference between the methods that learn from another teacher and
            `none`, in standard errors, that of the task where it is largest. None: no error says.
    """

    tasks: int
    seeds: int
    tasks_won: int
    worst_deficit_se: float | None
    random_teacher_delta_se: float | None


def mean(values: Sequence[float]) -> Mean:
    """Returns the mean of some values; NaN of none."""
    if not values:
        return Mean(math.nan, math.nan, 0)
    array = np.asarray(values, dtype=np.float64)
    return Mean(float(array.mean()), _standard_error(array), len(values))


def difference(values: Sequence[float]) -> Difference:
    """Returns the mean of paired differences with its bootstrap interval; NaN of none.

    Resamples are drawn with a fixed seed: the same differences give the same interval.
    """
    if not values:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(_SEED)
    means = np.concatenate(
        [
            array[generator.integers(len(array), size=(_CHUNK, len(array)))].mean(axis=1)
            for _ in range(NUM_RESAMPLES // _CHUNK)
        ]
    )
    tail = 100 * (1 - _CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Difference(float(array.mean()), _standard_error(array), float(low), float(high), len(values))


def _standard_error(array: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan


def oriented(line: Line) -> float:
    """Returns a cell's test result such that more is better."""
    value = float(line["test"])
    return -value if line["metric"] == "rmse" else value


def select(lines: Iterable[Line], **wanted: Any) -> list[Line]:
    """Returns the lines with these values."""
    return [line for line in lines if all(line[name] == value for name, value in wanted.items())]


def names_of(lines: Iterable[Line], name: str) -> list[Any]:
    """Returns the values of a coordinate, each once, as they come; of labels, None (all) last."""
    found = list(dict.fromkeys(line[name] for line in lines))
    return sorted(found, key=lambda each: (each is None, each or 0)) if name == "labels" else found


def paired(lines: Sequence[Line], method: str, other: str) -> list[float]:
    """Returns the oriented differences of two methods' cells, of those pairs that both have."""
    others = {_place(line): oriented(line) for line in lines if line["method"] == other}
    return [
        oriented(line) - others[_place(line)]
        for line in lines
        if line["method"] == method and _place(line) in others
    ]


def _place(line: Line) -> tuple[Any, ...]:
    return tuple(line[name] for name in _PAIRED_BY)


def headline(
    lines: Sequence[Line], ours: str | None, baselines: Sequence[str], random: Sequence[str], none: str
) -> Headline:
    """Returns what a study comes to.

    Args:
        lines: of finished cells, each cell once.
        ours: the method that it is about; None: there is none, and no task is won.
        baselines: what it is compared with.
        random: the methods that learn from a teacher that knows nothing.
        none: the method without a teacher.
    """
    tasks = names_of(lines, "task")
    of_tasks = [select(lines, task=task) for task in tasks]
    deltas = [paired(cells, method, none) for cells in of_tasks for method in random]
    return Headline(
        tasks=len(tasks),
        seeds=len(names_of(lines, "seed")),
        tasks_won=sum(_is_won(cells, ours, baselines) for cells in of_tasks) if ours else 0,
        worst_deficit_se=_worst_deficit(lines, ours, baselines) if ours else None,
        random_teacher_delta_se=_most_errors([pairs for pairs in deltas if pairs], abs),
    )


def _is_won(lines: Sequence[Line], ours: str, baselines: Sequence[str]) -> bool:
    others = [baseline for baseline in baselines if baseline != ours]
    return bool(others) and all(difference(paired(lines, ours, other)).is_better for other in others)


def _worst_deficit(lines: Sequence[Line], ours: str, baselines: Sequence[str]) -> float | None:
    """Returns the largest deficit against the best baseline of a task, labels and student."""
    found = [
        paired(cells, ours, best)
        for cells in places_of(lines)
        if (best := best_baseline(cells, ours, baselines)) is not None
    ]
    return _most_errors(found, lambda value: -value)


def _most_errors(found: Sequence[Sequence[float]], size: Callable[[float], float]) -> float | None:
    """Returns the largest mean of differences, in its standard errors; None: no error says it."""
    means = [mean(pairs) for pairs in found]
    if any(size(each.value) > _NO_ERROR and not each.standard_error > _NO_ERROR for each in means):
        return None  # one, or they are alike by chance
    errors = (size(each.value) / max(each.standard_error, _NO_ERROR) for each in means if each.num > 1)
    return max(errors, default=None)


def places_of(lines: Sequence[Line]) -> list[list[Line]]:
    """Returns the cells of each task, labels and student, in the order of the lines."""
    names = ("task", "labels", "student")
    places = dict.fromkeys(tuple(line[name] for name in names) for line in lines)
    return [select(lines, **dict(zip(names, place, strict=True))) for place in places]


def best_baseline(cells: Sequence[Line], ours: str, baselines: Sequence[str]) -> str | None:
    """Returns the hardest baseline for `ours` to beat, of those with the most pairs; None: none has any.

    Args:
        cells: of one task, labels and student.
        ours: the method that is compared.
        baselines: with which others.
    """
    pairs = {name: found for name in baselines if name != ours and (found := paired(cells, ours, name))}
    most = max(map(len, pairs.values()), default=0)
    means = {name: mean(found).value for name, found in pairs.items() if len(found) == most}
    return min(means, key=lambda name: means[name], default=None)
