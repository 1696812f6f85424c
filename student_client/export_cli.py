"""`preceptor export`: the student alone, to ship."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotation at run time
from typing import Annotated, Literal

import typer
from rich.table import Table

from preceptor.cli import console, fail, needs_extra

__all__ = ["export"]


@needs_extra("train", "safetensors")
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, for example out/intent.")],
    output: Annotated[
        Path | None, typer.Option(help="The folder to write; default: `export` in the run's folder.")
    ] = None,
    kind: Annotated[
        Literal["auto", "safetensors", "torch-export", "onnx"],
        typer.Option("--format", help="auto: safetensors for Hugging Face's students, else torch-export."),
    ] = "auto",
    force: Annotated[bool, typer.Option(help="Replace the folder if it is there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the folder and files as JSON on stdout.")
    ] = False,
) -> None:
    """Write a trained student without codec and teacher, with a model card.

    Nothing of preceptor is needed to load it.

    Example: preceptor export out/intent --format onnx
    """
    from student_client.export import ExportError, export_student

    try:
        written = export_student(run, output or run / "export", kind=kind, force=force)
    except (ExportError, OSError) as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(written))
        return
    table = Table(title=f"student of {run.name}", show_header=False, title_justify="left")
    for name, value in written.items():
        table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))
    console.print(table)
