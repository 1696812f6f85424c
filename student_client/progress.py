"""The progress of a training run in the terminal: how far it is, and what it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from preceptor.cli import console

if TYPE_CHECKING:
    from student_client.config import TrainConfig

__all__ = ["RunProgress", "note_of", "progress_of"]


def progress_of(settings: TrainConfig) -> Progress:
    """Returns the bar of a run, to be shown while it is open."""
    what = "against " + settings.teacher.address if settings.teacher else "alone"
    console.print(f"training [bold]{escape(settings.name)}[/] {what}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}", markup=False), console=console)


class RunProgress:
    """Shows what a run tells.

    Args:
        progress: where it is shown.
        name: of the run.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(escape(name), total=None, note="waiting for the workers to start")
        self._notes = {"steps": "", "epoch": ""}
        self._told = ""

    def take(self, line: dict[str, Any]) -> None:
        """Takes a line of the run in; see `train`'s `on_progress`."""
        if line["kind"] == "failed":
            text = f"a worker failed at step {line['step']}: {line['error']}"
            self._progress.console.print(text, markup=False)
        elif line["kind"] == "advice":
            text = f"warning: {line['message']}"
            self._progress.console.print(text, style="yellow", markup=False, highlight=False)
        elif line["kind"] == "doing":
            self._show_doing(line)
        elif line["kind"] in self._notes:
            self._notes[line["kind"]] = note_of(line)
            self._progress.update(
                self._task, completed=line["step"], total=line["num_steps"], note=self._note()
            )

    def _show_doing(self, line: dict[str, Any]) -> None:
        text = line["text"] or self._note()
        if line["text"] and line["text"] != self._told and not self._progress.console.is_terminal:
            self._progress.console.print(text, markup=False, highlight=False)  # no bar is drawn there
        self._told = line["text"]
        if line["text"]:
            worker = f"worker {line['worker']}: " if line["worker"] else ""
            text = f"{worker}{text} ({line['seconds']:.0f} s)"
        self._progress.update(self._task, note=text)

    def _note(self) -> str:
        return ", ".join(filter(None, self._notes.values()))


def note_of(line: dict[str, Any]) -> str:
    """Returns a line of metrics in short."""
    if line["kind"] == "epoch":
        return f"valid {line['metric']} {line['valid']:.3f}"
    return (
        f"loss {line['losses']['loss']:.3f}, {line['examples_per_s']:.0f} examples/s, "
        f"{line['waiting_share']:.0%} waiting for the teacher"
    )
