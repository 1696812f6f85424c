"""The `preceptor` command: joins the commands that the installed packages offer.

A package offers one through the entry point group `preceptor.commands`; this module imports neither side.

Exit codes: 0 done, 1 it failed, 2 wrong usage or config, 3 an extra is not installed, 4 the teacher can't be
reached, 5 another process does it already, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec

import typer
from pydantic import ValidationError
from rich.console import Console
from typer.core import TyperGroup

from preceptor import __version__
from preceptor.settings import fields_of, problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = [
    "EXIT_BUSY",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_MISSING_EXTRA",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "DefaultCommandGroup",
    "build",
    "config_errors",
    "console",
    "fail",
    "main",
    "needs_extra",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_MISSING_EXTRA = 3
EXIT_UNREACHABLE = 4
EXIT_BUSY = 5
EXIT_INTERRUPTED = 130

# People read stderr; stdout is for results, so that `--json` can be piped.
console = Console(stderr=True)

Params = ParamSpec("Params")


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Prints an error and ends the command."""
    console.print("[bold red]error:[/]", end=" ")
    console.print(message, markup=False, highlight=False)
    raise typer.Exit(code)


@contextlib.contextmanager
def config_errors(path: Path | None, changed: Mapping[str, str] | None = None) -> Iterator[None]:
    """Ends the command with `EXIT_USAGE` if reading a config fails while open, naming the field.

    Args:
        path: the file; None: there is none.
        changed: what replaces fields of the file, by their dotted names, as it is called on the command line.
    """
    try:
        yield
    except OSError as error:
        fail(f"{path}: can't be read: {error.strerror}", EXIT_USAGE)
    except ValidationError as error:
        wrong = fields_of(error)
        by = [said for field, said in (changed or {}).items() if any(_overlap(field, each) for each in wrong)]
        where = f" with {', '.join(by)}" if by else ""
        fail(f"{path or 'config'}{where}: {problems(error)}", EXIT_USAGE)
    except ValueError as error:
        fail(str(error), EXIT_USAGE)


def _overlap(field: str, other: str) -> bool:
    """Returns whether one of two fields, by their dotted names, is the other or in it."""
    return f"{field}.".startswith(f"{other}.") or f"{other}.".startswith(f"{field}.")


def needs_extra(extra: str, *modules: str) -> Callable[[Callable[Params, None]], Callable[Params, None]]:
    """Makes a command say how to install what it needs, where that is missing.

    Args:
        extra: of the distribution.
        modules: what the extra installs and the command imports.
    """

    def decorate(command: Callable[Params, None]) -> Callable[Params, None]:
        @functools.wraps(command)
        def run(*args: Params.args, **kwargs: Params.kwargs) -> None:
            missing = [module for module in modules if importlib.util.find_spec(module) is None]
            if missing:
                fail(
                    f"this needs {', '.join(missing)}, which this install lacks; get it with: "
                    f"pip install 'preceptor[{extra}]'",
                    EXIT_MISSING_EXTRA,
                )
            command(*args, **kwargs)

        return run

    return decorate


class DefaultCommandGroup(TyperGroup):
    """Commands of which the first, `run`, may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts `run` before arguments that start with no command and no option of the group."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


def build() -> typer.Typer:
    """Builds the command from what is installed."""
    app = typer.Typer(
        name="preceptor",
        help="Teacher-as-a-service: students learn by talking to one large frozen model.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for entry in sorted(entry_points(group="preceptor.commands"), key=lambda entry: entry.name):
        command = entry.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name)(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Takes the options that stand before a command."""


def main(*args: Any, **kwargs: Any) -> None:
    """Runs the command."""
    if sys.argv[1:2] in (["health"], ["describe"], ["status"]):
        # These say themselves what failed. gRPC reads it when it is imported, as `build` does.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    build()(*args, **kwargs)
