"""`preceptor fleet`: many students, each a Ray job."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.live import Live

from preceptor.cli import (
    EXIT_BUSY,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    DefaultCommandGroup,
    config_errors,
    console,
    fail,
    needs_extra,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from student_client.fleet import StudentView
    from student_client.fleet_config import FleetConfig
    from student_client.fleet_state import FleetFiles

__all__ = ["app"]

app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=True,
    help="Train many students, each a Ray job: `preceptor fleet FLEET.yaml` runs them all to their end.",
)

_POLL_S = 1.0

Config = Annotated[Path, typer.Argument(help="A YAML file; see docs/fleet.md.")]
Student = Annotated[str | None, typer.Argument(help="A student's name; without one, all of them.")]
Address = Annotated[
    str | None,
    typer.Option(help="Job server, http://HOST:8265, instead of the config's; without any a Ray is started."),
]
ServerAddress = Annotated[
    str | None, typer.Option(help="The job server that the fleet runs on, instead of the config's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the students as JSON on stdout.")]
Watch = Annotated[
    bool | None,
    typer.Option("--watch/--no-watch", help="Draw a live table; default: where the output is a terminal."),
]


@app.command("run")
@needs_extra("train", "ray", "safetensors")
def run(
    config: Config,
    address: Address = None,
    watch: Watch = None,
    fresh: Annotated[bool, typer.Option(help="Delete earlier runs of all students first.")] = False,
    again: Annotated[
        list[str] | None, typer.Option(help="Delete this student's earlier run first; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run all students to their end; those that are done already are kept.

    Example: preceptor fleet spring.yaml --address http://127.0.0.1:8265
    """
    settings = _load(config)
    for name in again or []:
        _names(settings, name)
    _run(settings, address, watch=watch, fresh=fresh, again=again or [], as_json=as_json)


@app.command("resume")
@needs_extra("train", "ray", "safetensors")
def resume(config: Config, address: Address = None, watch: Watch = None, as_json: Json = False) -> None:
    """Go on with those that failed or were stopped, from their checkpoints."""
    _run(_load(config), address, watch=watch, resume=True, as_json=as_json)


@app.command("status")
def status(
    config: Config,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Show how the students are, from the fleet's files."""
    from student_client.fleet import view

    settings = _load(config)
    views = view(settings)
    if watch:
        with _shown(settings, watch=None) as show, contextlib.suppress(KeyboardInterrupt):
            while show(views) or any(each.state.state in ("waiting", "running") for each in views):
                time.sleep(_POLL_S)
                views = view(settings)
    _print(settings, views, as_json=as_json)


@app.command("logs")
def logs(
    config: Config,
    student: Annotated[str, typer.Argument(help="A student's name.")],
    address: ServerAddress = None,
) -> None:
    """Print what a student's last job has printed."""
    from student_client.fleet_jobs import JobServerError, RayJobs, job_server
    from student_client.fleet_state import FleetFiles

    settings = _load(config)
    (name,) = _names(settings, student)
    files = FleetFiles(settings.folder)
    state = files.load().get(name)
    if state is None or not state.submission_id:
        fail(f"{name}: was not started yet")
    if state.state != "running" and files.log(name).exists():
        typer.echo(files.log(name).read_text(encoding="utf-8"))
        return
    _need_server(settings, address)
    with job_server(address or settings.address) as (url, _):
        try:
            typer.echo(RayJobs(url, settings.job, files.configs).logs(state.submission_id))
        except JobServerError as error:
            fail(str(error))


@app.command("stop")
def stop(config: Config, student: Student = None, address: ServerAddress = None) -> None:
    """Stop a student, or all; `resume` goes on from their checkpoints."""
    from student_client.fleet_jobs import JobServerError
    from student_client.fleet_state import FleetFiles
    from student_client.locks import FolderLockedError

    settings = _load(config)
    files = FleetFiles(settings.folder)
    names = _names(settings, student)
    for name in names:
        files.ask_to_stop(name)
    try:
        with files.lock():  # nobody runs the fleet now
            _stop_ourselves(settings, address, files, names)
    except FolderLockedError:
        console.print(f"asked whoever runs the fleet to stop {', '.join(names)}")
        return
    except JobServerError as error:
        fail(str(error))
    console.print(f"stopped: {', '.join(names)}")


def _stop_ourselves(
    settings: FleetConfig, address: str | None, files: FleetFiles, names: Sequence[str]
) -> None:
    """Ends the jobs of a fleet that nobody runs, if any are left, and writes that down."""
    from student_client.fleet_jobs import RayJobs, job_server

    states = files.load()
    running = [name for name in names if name in states and states[name].state == "running"]
    if running:
        _need_server(settings, address)
        with job_server(address or settings.address) as (url, _):
            jobs = RayJobs(url, settings.job, files.configs)
            for name in running:
                jobs.stop(states[name].submission_id)
    for name in names:
        files.forget_to_stop(name)
        if name in states and states[name].state in ("waiting", "running"):
            states[name].state = "stopped"
    files.save(states)


def _run(
    settings: FleetConfig,
    address: str | None,
    *,
    watch: bool | None,
    as_json: bool,
    fresh: bool = False,
    again: Sequence[str] = (),
    resume: bool = False,
) -> None:
    from student_client.fleet import Fleet
    from student_client.fleet_jobs import JobServerError, RayJobs, check_token, job_server
    from student_client.fleet_state import FleetFiles
    from student_client.locks import FolderLockedError

    is_own = False
    try:
        with job_server(address or settings.address) as (url, is_own):
            if not is_own:
                check_token(settings)
            python = sys.executable if is_own else "python"
            console.print(f"fleet [bold]{settings.name}[/]: {len(settings.runs)} students, jobs at {url}")
            jobs = RayJobs(url, settings.job, FleetFiles(settings.folder).configs, python=python)
            fleet = Fleet(settings, jobs, fresh=fresh, again=again)
            with _shown(settings, watch=watch) as show:
                all_done = fleet.run(show, resume=resume)
            views = fleet.views()
    except ValueError as error:
        fail(str(error), EXIT_USAGE)
    except FolderLockedError as error:
        fail(str(error), EXIT_BUSY)
    except (JobServerError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        what = "the jobs have ended with their Ray" if is_own else "the jobs go on"
        console.print(f"interrupted; {what}, and `preceptor fleet` on the same file goes on from there")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _print(settings, views, as_json=as_json)
    if not all_done:
        _fail_for(views)


def _fail_for(views: Sequence[StudentView]) -> NoReturn:
    num_left = sum(each.state.state != "done" for each in views)
    console.print(f"[bold red]{num_left} of {len(views)} are not done[/]")
    raise typer.Exit(EXIT_FAILED)


def _load(path: Path) -> FleetConfig:
    from student_client.fleet_config import FleetConfig

    with config_errors(path):
        return FleetConfig.load(path)


def _names(settings: FleetConfig, student: str | None) -> list[str]:
    names = [run.name for run in settings.runs]
    if student is None:
        return names
    if student not in names:
        fail(f"STUDENT: got {student!r}, expected one of {', '.join(names)}", EXIT_USAGE)
    return [student]


def _need_server(settings: FleetConfig, address: str | None) -> None:
    """Asks for the address of a server that is already there: a Ray that were started here has no jobs."""
    known = address or settings.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not known and "RAY_ADDRESS" not in os.environ:
        fail("--address: got none, expected the job server that the fleet was run on", EXIT_USAGE)


@contextlib.contextmanager
def _shown(settings: FleetConfig, *, watch: bool | None) -> Iterator[Callable[[Sequence[StudentView]], None]]:
    """Yields what shows the students: as a live table, or a line a change."""
    from student_client.fleet_table import fleet_table, line

    if console.is_terminal if watch is None else watch:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda views: live.update(fleet_table(settings.name, views), refresh=True)
        return
    shown: dict[str, str] = {}

    def show(views: Sequence[StudentView]) -> None:
        for each in views:
            text = line(each)
            if shown.get(each.name) != text:
                shown[each.name] = text
                console.print(text, markup=False, highlight=False)

    yield show


def _print(settings: FleetConfig, views: Sequence[StudentView], *, as_json: bool) -> None:
    from student_client.fleet_table import facts, fleet_table

    if as_json:
        content: dict[str, Any] = {"name": settings.name, "students": [facts(each) for each in views]}
        typer.echo(json.dumps(content))
        return
    console.print(fleet_table(settings.name, views))
