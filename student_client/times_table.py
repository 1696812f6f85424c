"""Where the time of a step went, as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["times_table"]

_PARTS = {
    "student_s": "student's own work",
    "wire_s": "waiting: wire (network, frames)",
    "queue_s": "waiting: queue of the teacher",
    "teacher_s": "waiting: the teacher computes",
    "step_s": "a step",
}


def times_table(times: Mapping[str, float]) -> Table:
    """Returns the table of a mean step.

    Args:
        times: seconds by part, as `StepTimes.of_one` returns them.
    """
    table = Table(title="where a step's time went", title_justify="left")
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    for name, title in _PARTS.items():
        share = times[name] / times["step_s"] if times["step_s"] else 0.0
        table.add_row(title, f"{1000 * times[name]:.1f}", f"{share:.0%}", end_section=name == "teacher_s")
    return table
