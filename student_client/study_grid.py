"""A table, and how it is shown: in a terminal, in Markdown, on a page."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Grid", "as_html", "as_markdown", "as_rich"]


@dataclass(frozen=True)
class Grid:
    """A table: its title, the headings of its columns, rows of as many cells; `note` says how to read it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


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
