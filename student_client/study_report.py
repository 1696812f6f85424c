"""Writes what came of a study: `table.md` with plots, and `report.html`, a page that needs no other file."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from student_client.study_grid import as_html, as_markdown
from student_client.study_plots import plots
from student_client.study_statistics import paired, select
from student_client.study_table import comparisons_of, grids, summary
from student_client.whole_files import write_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from student_client.study_config import StudyConfig
    from student_client.study_plots import Plot
    from student_client.study_statistics import Line
    from student_client.study_table import Comparison

__all__ = ["PLOTS_FOLDER", "REPORT_FILE", "TABLE_FILE", "sentences", "write_report"]

REPORT_FILE = "report.html"
TABLE_FILE = "table.md"
PLOTS_FOLDER = "plots"

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: #0f172a; background: #fff;
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.plots { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; break-inside: avoid; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; max-width: 34rem; font-family: system-ui, sans-serif; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #cbd5e1; text-align: right; font-weight: 400; }
th:first-child { text-align: left; min-width: 8rem; } thead th { font-weight: 600; vertical-align: bottom; }
td { white-space: nowrap; }
.note { color: #475569; font-size: .875rem; margin: .25rem 0 1.5rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 9pt; } .table { overflow: visible; }
  .plots { grid-template-columns: repeat(2, 1fr); } table { font-size: 7.5pt; } td { white-space: normal; }
  tr { break-inside: avoid; }
}
"""


def write_report(study: StudyConfig, lines: Sequence[Line], folder: Path) -> None:
    """Writes table, plots and report into a folder.

    Args:
        study: says what is compared.
        lines: of finished cells, each cell once.
        folder: where they are put.
    """
    drawn = plots(study, lines)
    parts = [f"# Study {study.name}", *sentences(study, lines), *_written(drawn, folder)]
    parts += [as_markdown(grid) for grid in grids(study, lines)]
    write_text(folder / TABLE_FILE, "\n\n".join(parts))
    write_text(folder / REPORT_FILE, _page(study, lines, drawn))


def _written(drawn: Sequence[Plot], folder: Path) -> list[str]:
    """Writes figures in place of those of before; returns links to them."""
    for old in (folder / PLOTS_FOLDER).glob("*.svg"):
        old.unlink()
    links = []
    for number, plot in enumerate(drawn, start=1):
        slug = re.sub(r"[^\w.]+", "-", plot.title.lower()).strip("-")
        path = f"{PLOTS_FOLDER}/{number:02d}-{slug}.svg"
        write_text(folder / path, plot.file)
        title = re.sub(r"([][])", r"\\\1", plot.title)
        links.append(f"![{title}]({path})")
    return links


def sentences(study: StudyConfig, lines: Sequence[Line]) -> list[str]:
    """Returns what a study comes to, in words."""
    if not lines:
        return ["No cell is finished yet."]
    found = summary(study, lines)
    said = [f"{len(lines)} cells: {found['tasks']} tasks, {found['seeds']} seeds."]
    ours = [each for each in comparisons_of(study) if each.method == study.ours]
    if ours and _has_errors(lines, ours, "task", "labels", "student"):
        said.append(
            f"{study.ours!r} is better than every baseline ({', '.join(study.baselines)}), with an interval "
            f"that excludes zero, on {found['tasks_won']} of {found['tasks']} tasks."
        )
        behind = found["worst_deficit_se"]
        if behind is not None:
            worst = f"At worst it is {behind:.2f} standard errors" if behind > 0 else "It is never"
            said[-1] += f" {worst} behind the best baseline of a task and its labels."
    if found["random_teacher_delta_se"] is not None:
        said.append(
            f"A student of a teacher that knows nothing is at most {found['random_teacher_delta_se']:.2f} "
            f"standard errors away from {study.none!r}."
        )
    return said


def _has_errors(lines: Sequence[Line], comparisons: Sequence[Comparison], *names: str) -> bool:
    """Returns whether there are differences with a standard error; without, nothing can be said of them."""
    places = {tuple(line[name] for name in names) for line in lines}
    of_places = [select(lines, **dict(zip(names, place, strict=True))) for place in places]
    return any(len(paired(cells, each.method, each.other)) > 1 for cells in of_places for each in comparisons)


def _page(study: StudyConfig, lines: Sequence[Line], drawn: Sequence[Plot]) -> str:
    figures = "".join(
        f"<figure><figcaption>{html.escape(plot.title)}</figcaption>{plot.element}</figure>" for plot in drawn
    )
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences(study, lines))
    tables = "".join(as_html(grid) for grid in grids(study, lines))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Study {html.escape(study.name)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>Study {html.escape(study.name)}</h1>{said}"
        f'<h2>Figures</h2><p class="note">Bars are standard errors over seeds; intervals are 95 % bootstrap '
        f'intervals of paired differences.</p><div class="plots">{figures}</div>'
        f"<h2>Tables</h2>{tables}{_made_with(lines)}</body></html>\n"
    )


def _made_with(lines: Sequence[Line]) -> str:
    """Returns the versions that cells were run with."""
    versions = sorted(
        {", ".join(f"{name} {number}" for name, number in line["versions"].items()) for line in lines}
    )
    return "".join(f'<p class="note">Run with {html.escape(each)}.</p>' for each in versions)
