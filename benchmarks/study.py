"""Does talking teach better than telling? Reads the study's committed cells, or runs some of them again.

    python -m benchmarks.study --summary
    python -m benchmarks.study --rerun TASK [--only seed=0]

A summary prints the tables of all cells that are written down, every seed. A rerun computes those of a task
anew, in a folder of its own, and prints them beside; its teachers may be those of before, from the cache. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from student_client.compare_cli import progress_text
from student_client.study_cells import cells_of, wanted_of
from student_client.study_config import StudyConfig
from student_client.study_grid import Grid, as_rich
from student_client.study_report import write_report
from student_client.study_results import coordinates_of, newest, read_lines
from student_client.study_runner import Study
from student_client.study_statistics import names_of, select
from student_client.study_table import grids, mean_text, summary

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from student_client.study_cells import Cell
    from student_client.study_runner import StudyState

__all__ = ["beside", "main"]

_ROOT = Path(__file__).resolve().parents[1]
_RESULTS = _ROOT / "benchmarks" / "results" / "study.jsonl"
_STUDY = _ROOT / "examples" / "study" / "headline.yaml"

_stdout, _stderr = Console(width=170), Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what was asked for; returns the exit status."""
    options = _parse(arguments)
    study = StudyConfig.load(options.study)
    lines = newest(read_lines(options.results))
    if not lines:
        _stderr.print(f"{options.results}: holds no finished cell", markup=False, soft_wrap=True)
        return 1
    facts = summary(study, lines)
    if options.rerun is None:
        for grid in grids(study, lines):
            _stdout.print(as_rich(grid))
        if options.report is not None:
            write_report(study, lines, options.report)
        print(json.dumps(facts))
        return 0
    before = select(lines, task=options.rerun)
    cells = _cells_again(study, options, {coordinates_of(line) for line in before})
    if not cells:
        which = " ".join(("holds no finished cell of", options.rerun, *options.only))
        _stderr.print(f"{options.results}: {which}", markup=False, soft_wrap=True)
        return 1
    again, num_failed = _rerun(study, options, cells)
    grid, found = beside(before, again)
    _stdout.print(as_rich(grid))
    print(json.dumps({**facts, "rerun": options.rerun, "num_failed": num_failed, **found}))
    return 1 if num_failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--summary", action="store_true", help="print tables of the cells written down")
    what.add_argument("--rerun", metavar="TASK", help="run this task's cells anew and compare")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="the cells written down")
    parser.add_argument("--study", type=Path, default=_STUDY, help="the study that they are of")
    parser.add_argument("--report", type=Path, help="a folder for table.md, plots and report.html")
    parser.add_argument(
        "--output", type=Path, help="where a rerun's folder is kept; default: a temporary one"
    )
    parser.add_argument("--only", action="append", default=[], help="of a rerun: as `preceptor compare`")
    return parser.parse_args(arguments)


def _cells_again(
    study: StudyConfig, options: argparse.Namespace, known: Collection[tuple[Any, ...]]
) -> list[Cell]:
    """Returns the cells of a task that are written down, and were asked for."""
    wanted = wanted_of([f"task={options.rerun}", *options.only])
    return [cell for cell in cells_of(study, wanted) if coordinates_of(cell.coordinates) in known]


def _rerun(
    study: StudyConfig, options: argparse.Namespace, cells: Sequence[Cell]
) -> tuple[list[dict[str, Any]], int]:
    """Runs cells anew; returns their lines, and how many failed."""
    with tempfile.TemporaryDirectory() as folder:
        moved = study.model_copy(update={"output": Path(options.output or folder).resolve()})
        run = Study(moved, cells)
        told = ""

        def tell(state: StudyState) -> None:
            nonlocal told
            text = progress_text(study.name, state)
            if text.partition(", about")[0] != told:
                print(text, file=sys.stderr)
            told = text.partition(", about")[0]

        state = run.run(tell)
        for cell, error in state.failures:
            _stderr.print(f"failed: {cell.title}: {error}", markup=False, soft_wrap=True)
        return run.lines(), len(state.failures)


def beside(before: Sequence[dict[str, Any]], again: Sequence[dict[str, Any]]) -> tuple[Grid, dict[str, Any]]:
    """Returns cells of a task beside their reruns, as a table and as facts.

    Args:
        before: lines that were written down.
        again: lines of the same task, run again; only cells that are in both are compared.
    """
    known = {coordinates_of(line): line for line in before}
    both = [line for line in again if coordinates_of(line) in known]
    changes = {coordinates_of(line): line["test"] - known[coordinates_of(line)]["test"] for line in both}
    rows = []
    for labels in names_of(both, "labels"):
        for method in names_of(both, "method"):
            new = select(both, labels=labels, method=method)
            if new:
                old = [known[coordinates_of(line)] for line in new]
                worst = max(abs(changes[coordinates_of(line)]) for line in new)
                budget = "all" if labels is None else str(labels)
                rows.append((method, budget, mean_text(old), mean_text(new), f"{worst:.4f}"))
    grid = Grid(
        "cells written down, and run again",
        ("method", "labels", "before", "again", "largest change of a cell"),
        tuple(rows),
        "Mean ± standard error over the cells that are in both.",
    )
    return grid, {
        "num_compared": len(both),
        "num_identical": sum(change == 0 for change in changes.values()),
        "largest_change": max((abs(change) for change in changes.values()), default=0.0),
    }


if __name__ == "__main__":
    sys.exit(main())
