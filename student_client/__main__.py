"""The client's commands without entry points: what a Ray job runs where only code was sent along.

python -m student_client train CONFIG
"""

from __future__ import annotations

import typer

from student_client.cli import describe, train

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(describe)
app.command()(train)

if __name__ == "__main__":
    app()
