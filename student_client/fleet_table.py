"""A fleet as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from student_client.fleet import StudentView

__all__ = ["facts", "fleet_table", "line"]

_STYLES = {"running": "cyan", "done": "green", "failed": "bold red", "stopped": "yellow", "waiting": "dim"}


def fleet_table(name: str, views: Sequence[StudentView]) -> RenderableType:
    """Returns a table with a row a student, and below it a line for each that has an error to tell of.

    "waits" is the share of the time that was spent waiting for the teacher, "tries" the jobs so far.
    """
    errors = []
    num_done = sum(view.state.state == "done" for view in views)
    table = Table(
        title=f"fleet {name}: {num_done} of {len(views)} done",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("student", overflow="fold")
    table.add_column("state", no_wrap=True)
    for column in ("step", "loss", "valid", "test", "ex./s", "waits", "tries"):  # fits 80 columns
        table.add_column(column, justify="right", no_wrap=True)
    for view in views:
        state, progress = view.state, view.progress
        step = "" if progress.step is None else f"{progress.step}/{progress.num_steps}"
        table.add_row(
            view.name,
            f"[{_STYLES[state.state]}]{state.state}[/]",
            step,
            _number(progress.loss),
            _number(progress.valid),
            _number(progress.test),
            "" if progress.examples_per_s is None else f"{progress.examples_per_s:.0f}",
            "" if progress.waiting_share is None else f"{progress.waiting_share:.0%}",
            str(state.attempts),
        )
        if state.error:
            errors.append(f"{view.name}: {state.error}")
    return Group(table, *(Text(error, style="red") for error in errors))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def line(view: StudentView) -> str:
    """Returns what has become of a student, for where no table is drawn."""
    state = view.state
    return f"{view.name}: {state.state}" + (f" ({state.error})" if state.error else "")


def facts(view: StudentView) -> dict[str, Any]:
    """Returns a student for scripts."""
    progress = view.progress
    return {
        "name": view.name,
        "state": view.state.state,
        "error": view.state.error,
        "attempts": view.state.attempts,
        "submission_id": view.state.submission_id,
        **{name: getattr(progress, name) for name in progress.__dataclass_fields__},
    }
