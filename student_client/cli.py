"""`preceptor describe` and `preceptor train`."""

from __future__ import annotations

import json
import threading
from pathlib import Path  # noqa: TC003 - typer reads the annotation at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from google.protobuf.json_format import MessageToDict
from rich.table import Table
from rich.text import Text

from preceptor.cli import (
    EXIT_BUSY,
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    config_errors,
    console,
    fail,
    needs_extra,
)
from student_client.client_cli import (
    Address,
    Authority,
    Certificate,
    Insecure,
    Key,
    ServerName,
    TokenFile,
    client_of,
    told_errors,
)
from student_client.progress import RunProgress, progress_of
from student_client.records import flat
from student_client.times_table import times_table

if TYPE_CHECKING:
    from rich.status import Status

    from student_client.config import TrainConfig
    from student_client.train import TrainResult

__all__ = ["describe", "train"]

_PERIOD_S = 0.2
_DATA, _TEACHER = "data.train", "teacher.address"
_ARGUMENTS = {_DATA: "DATA", _TEACHER: "--teacher"}  # which fields they are of

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def describe(
    address: Address,
    ca: Authority = None,
    certificate: Certificate = None,
    key: Key = None,
    server_name: ServerName = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Say what a served teacher is and what it accepts.

    A teacher that asks for a token gets that of --token-file, or the one in the variable PRECEPTOR_TOKEN.

    Example: preceptor describe preceptors://teacher.example:41500 --ca ca.pem --token-file support.token
    """
    client = client_of(address, ca, certificate, key, server_name, token_file, insecure=insecure)
    with told_errors():
        response = client.describe()
    facts: dict[str, Any] = MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for title in ("teacher", "limits"):
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in facts[title].items():
            table.add_row(name, json.dumps(value) if isinstance(value, list) else str(value))
        console.print(table)


@needs_extra("train", "ray", "safetensors")
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file; see examples/text/intent.yaml.")],
    data: Annotated[Path | None, typer.Argument(help="Training table, instead of the config's.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Teacher's address, instead of the config's.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE replaces a field, e.g. optimizer.lr=0.002; paths start here."),
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Delete an earlier run of this name first.")] = False,
    fresh_once: Annotated[str, typer.Option(hidden=True, help="The same, once for each text.")] = "",
    as_json: Json = False,
) -> None:
    """Fine-tune a student with Ray Train, against a served teacher.

    A run that was stopped goes on from its last checkpoint when it is started again under the same name.

    Example: preceptor train examples/text/intent.yaml data.csv --set epochs=3
    """
    settings = _load(config, _overrides(data, teacher, changes or []))
    from student_client.errors import TeacherError, TeacherUnavailableError
    from student_client.locks import FolderLockedError
    from student_client.train import TrainError

    try:
        result = _run(settings, fresh=fresh_once or fresh)
    except ValueError as error:
        fail(str(error), EXIT_USAGE)
    except TeacherUnavailableError as error:
        fail(str(error), EXIT_UNREACHABLE)
    except FolderLockedError as error:
        fail(str(error), EXIT_BUSY)
    except (TrainError, TeacherError) as error:
        fail(str(error))
    except OSError as error:  # the output, or Ray at RAY_ADDRESS
        fail(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        console.print(f"stopped; the same command goes on from the last checkpoint of {settings.name!r}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _print_result(result, as_json=as_json)


def _run(settings: TrainConfig, *, fresh: str | bool) -> TrainResult:
    """Trains with a progress bar; mistakes are told before Ray is started, if it can be told without."""
    from student_client.cluster import check_resources, check_token
    from student_client.train import check_folder, local_ray
    from student_client.train import train as run_training

    check_folder(settings, fresh=fresh)
    if not settings.data.stream:
        _check(settings)
    with local_ray() as is_own, progress_of(settings) as progress:
        if is_own:
            check_resources(settings)
        else:
            check_token(settings)
        shown = RunProgress(progress, settings.name)
        return run_training(settings, fresh=fresh, checked=not settings.data.stream, on_progress=shown.take)


def _check(settings: TrainConfig) -> None:
    """Finds mistakes before Ray is started; says what it is at while that takes long."""
    from student_client.activity import Activity
    from student_client.train import check

    activity, is_over = Activity(), threading.Event()

    def tell(status: Status) -> None:
        while not is_over.wait(_PERIOD_S):
            status.update(Text(activity.latest[0] or "looking through the config"))

    with console.status("looking through the config") as status:
        thread = threading.Thread(target=tell, args=(status,), daemon=True)
        thread.start()
        try:
            check(settings, activity)
        finally:
            is_over.set()
            thread.join()


def _overrides(data: Path | None, teacher: str | None, changes: list[str]) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for change in changes:
        name, separator, value = change.partition("=")
        if not separator:
            fail(f"--set: got {change!r}, expected NAME=VALUE", EXIT_USAGE)
        try:
            overrides[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            fail(f"--set {name}: got {value!r}, expected a YAML value", EXIT_USAGE)
    if data is not None:
        overrides[_DATA] = data
    if teacher is not None:
        overrides[_TEACHER] = teacher
    return overrides


def _load(path: Path, overrides: dict[str, Any]) -> TrainConfig:
    from student_client.config import TrainConfig

    with config_errors(path, {name: _ARGUMENTS.get(name, f"--set {name}") for name in overrides}):
        return TrainConfig.load(path, overrides)


def _print_result(result: TrainResult, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"name": result.name, "folder": str(result.folder), **result.facts}))
        return
    table = Table(title=f"run {result.name}", show_header=False, title_justify="left")
    facts = dict(result.facts)
    times = facts.pop("step_times", None)
    for name, value in flat(facts).items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    table.add_row("folder", str(result.folder))
    console.print(table)
    if times:
        console.print(times_table(times))
