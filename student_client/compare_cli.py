"""`preceptor compare`: a study of methods, from its first cell to its report."""

from __future__ import annotations

import json
import signal
from pathlib import Path  # noqa: TC003 - typer reads the annotation at run time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.live import Live
from rich.text import Text

from preceptor.cli import (
    EXIT_BUSY,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    config_errors,
    console,
    fail,
    needs_extra,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from student_client.study_cells import Cell
    from student_client.study_config import StudyConfig
    from student_client.study_runner import Study, StudyState

__all__ = ["compare"]

_MINUTE_S = 60
_MAX_TOLD_FAILURES = 20


@needs_extra("train", "matplotlib", "safetensors")
def compare(
    config: Annotated[Path, typer.Argument(help="A YAML file; see docs/study.md.")],
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE runs only cells of that task, labels, student, method or seed; may be repeated."
        ),
    ] = None,
    parallelism: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time, instead of the config's.")
    ] = None,
    report_only: Annotated[
        bool,
        typer.Option("--report-only", help="Run nothing; write table, plots and report of what is there."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on stdout.")] = False,
) -> None:
    """Compare ways to train students: methods x students x tasks x label budgets x seeds, then a report.

    Cells that are finished are not run again, so a study that was stopped goes on with the same command.

    Example: preceptor compare examples/study/quick.yaml --only task=digits-inverted
    """
    settings, study = _load(config, only or [], parallelism, is_run=not report_only)
    if not report_only:
        _run(settings, study)
    _report(settings, study.state, as_json=as_json)
    _tell_failures(study.state)
    if study.state.failures:
        raise typer.Exit(EXIT_FAILED)


def _load(path: Path, only: list[str], parallelism: int | None, *, is_run: bool) -> tuple[StudyConfig, Study]:
    from student_client.study_cells import cells_of, check_factories, wanted_of
    from student_client.study_config import StudyConfig
    from student_client.study_runner import Study

    try:
        wanted = wanted_of(only)
    except ValueError as error:
        fail(str(error), EXIT_USAGE)
    with config_errors(path):
        settings = StudyConfig.load(path)
        cells: Sequence[Cell] = cells_of(settings, wanted)
        study = Study(settings, cells, parallelism=parallelism)
        if is_run:
            check_factories(settings, study.open_cells())
    return settings, study


def _run(settings: StudyConfig, study: Study) -> None:
    from student_client.locks import FolderLockedError

    before = signal.signal(signal.SIGTERM, _interrupt)
    shown = _Shown(settings.name)
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            study.run(lambda state: shown.show(state, live))
    except FolderLockedError as error:
        fail(str(error), EXIT_BUSY)
    except OSError as error:
        fail(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on with what is left")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


class _Shown:
    """Shows how far a study is: in place on a terminal, else a line whenever a cell has ended.

    Args:
        name: of the study.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._told = ("", -1, -1)

    def show(self, state: StudyState, live: Live) -> None:
        """Shows it, unless it is as it was."""
        text = progress_text(self._name, state)
        if console.is_terminal:
            live.update(Text(f"{text}\n  {state.doing}"), refresh=True)
            return
        is_start = state.doing.startswith("starting")
        told = (state.doing if is_start else "", state.num_done, len(state.failures))
        if told != self._told:
            console.print(f"{text}{'; ' + state.doing if is_start else ''}", markup=False, highlight=False)
        self._told = told


def progress_text(name: str, state: StudyState) -> str:
    """Returns how far a study is, in a line."""
    parts = [f"study {name}: {state.num_done} of {state.num_cells} cells are done"]
    if state.failures:
        parts.append(f"{len(state.failures)} failed")
    if state.time_left_s:
        parts.append(f"about {_duration(state.time_left_s)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    minutes = round(seconds / _MINUTE_S)
    return f"{minutes} min" if minutes < 2 * _MINUTE_S else f"{minutes / _MINUTE_S:.1f} h"


def _report(settings: StudyConfig, state: StudyState, *, as_json: bool) -> None:
    """Prints the table, and writes it and the report into the study's folder; of all cells, always."""
    from student_client.study_cells import cells_of
    from student_client.study_grid import as_rich
    from student_client.study_report import REPORT_FILE, TABLE_FILE, sentences, write_report
    from student_client.study_runner import Study
    from student_client.study_table import grids, summary

    lines = Study(settings, cells_of(settings)).lines()
    write_report(settings, lines, settings.folder)
    if as_json:
        facts = {"name": settings.name, "folder": str(settings.folder), "num_cells": len(lines)}
        failed = {"num_failed": len(state.failures)}
        typer.echo(json.dumps({**facts, **failed, **summary(settings, lines)}))
    else:
        for grid in grids(settings, lines):
            console.print(as_rich(grid))
    for sentence in sentences(settings, lines):
        console.print(sentence, markup=False, highlight=False)
    folder = settings.folder
    console.print(
        f"written: {folder / TABLE_FILE}, {folder / REPORT_FILE}, plots", markup=False, highlight=False
    )


def _tell_failures(state: StudyState) -> None:
    for cell, error in state.failures[:_MAX_TOLD_FAILURES]:
        console.print(Text(f"failed: {cell.title}: {error}", style="red"))
    if len(state.failures) > _MAX_TOLD_FAILURES:
        console.print(f"and {len(state.failures) - _MAX_TOLD_FAILURES} more, see results.jsonl")


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
