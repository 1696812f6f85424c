"""Draws a run's `metrics.jsonl`: its losses, and where the time of its steps goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from student_client.whole_files import whole_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["draw_losses", "draw_waiting"]

_COLORS = ("#0f172a", "#0f766e", "#f59e0b", "#1e3a8a", "#b91c1c", "#7c3aed", "#64748b")
# From the bottom up.
_PARTS = {
    "student_s": "student",
    "wire_s": "wire",
    "queue_s": "queue of the teacher",
    "teacher_s": "teacher computes",
}
_PART_COLORS = ("#cbd5e1", "#1e3a8a", "#f59e0b", "#0f766e")


def draw_losses(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws each loss over the steps, and the metric on the validation examples, into a PNG file."""
    figure, (top, bottom) = _panels()
    steps = _of_kind(lines, "steps")
    names = list(dict.fromkeys(name for line in steps for name in line["losses"]))
    for number, name in enumerate(names):
        points = [(line["step"], line["losses"][name]) for line in steps if name in line["losses"]]
        _line(top, points, name, _COLORS[number % len(_COLORS)])
    top.set_ylabel("loss")
    if names:
        if all(value > 0 for line in steps for value in line["losses"].values()):
            top.set_yscale("log")
        top.legend(ncols=4, fontsize=8, frameon=False)
    epochs = _of_kind(lines, "epoch")
    _line(bottom, [(line["step"], line["valid"]) for line in epochs], "", _COLORS[1])
    bottom.set_ylabel(f"valid {epochs[-1]['metric']}" if epochs else "valid")
    bottom.set_xlabel("step")
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=120)


def draw_waiting(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws where the time of a step goes, its parts on top of each other, and the speed."""
    figure, (top, bottom) = _panels()
    steps = _of_kind(lines, "steps")
    timed = [line for line in steps if "step_times" in line]  # earlier releases did not tell
    if timed:
        parts = [[1000 * line["step_times"][name] for line in timed] for name in _PARTS]
        at = [line["step"] for line in timed]
        if len(at) == 1:  # an area needs two points
            at, parts = [at[0] - 1, at[0]], [[*part, *part] for part in parts]
        waiting = sum(line["step_times"]["step_s"] * line["waiting_share"] for line in timed)
        share = waiting / (sum(line["step_times"]["step_s"] for line in timed) or 1.0)
        top.stackplot(at, parts, labels=list(_PARTS.values()), colors=_PART_COLORS)
        top.set_title(f"{share:.0%} of the time was spent waiting for the teacher", loc="left", fontsize=9)
        top.legend(ncols=4, fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, -0.25))
    top.set_ylim(bottom=0)
    top.set_ylabel("a step, ms")
    _line(bottom, [(line["step"], line["examples_per_s"]) for line in steps], "", _COLORS[3])
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("examples/s")
    bottom.set_xlabel("step")
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=120)


def _panels() -> tuple[Any, Any]:
    # Without pyplot: no state that other users of matplotlib in this process would share.
    from matplotlib.figure import Figure  # noqa: PLC0415 - heavy

    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _of_kind(lines: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


def _line(panel: Any, points: Sequence[tuple[float, float]], label: str, color: str) -> None:
    """Draws a line; few points are marked, since one alone draws none."""
    marker = "o" if len(points) < 10 else None  # noqa: PLR2004
    panel.plot(
        [x for x, _ in points], [y for _, y in points], label=label or None, color=color, marker=marker
    )
