"""`preceptor serve` serves a frozen teacher until it is told to stop; `environment` prepares a Ray for it."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
from pathlib import Path  # noqa: TC003 - typer reads the annotation at run time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from preceptor.cli import EXIT_USAGE, config_errors, console, fail, needs_extra
from preceptor.hosts import is_any, is_loopback
from services.teacher.console_config import DEFAULT_CONSOLE_PORT
from services.teacher.environment import serve_environment, socket_address

if TYPE_CHECKING:
    from services.teacher.config import ServiceConfig

__all__ = ["environment", "serve"]


_ShowConsole = Annotated[
    bool,
    typer.Option(
        "--console",
        help="Serve the console, a page that shows who talks, who waits and who is refused, at the config's "
        f"port or at {DEFAULT_CONSOLE_PORT}.",
    ),
]


@needs_extra("service", "ray", "transformers", "safetensors")
def serve(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file; without one the MiniLM sentence encoder is served.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="The port, instead of the config's.")] = None,
    num_cpus: Annotated[int, typer.Option(help="Logical CPUs of a Ray that is started here.")] = 8,
    auth: Annotated[
        str | None,
        typer.Option(help="`none`: whoever is on this machine may talk, no token is asked for."),
    ] = None,
    show_console: _ShowConsole = False,
    console_port: Annotated[int | None, typer.Option(help="The console's port; there is one then.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as JSON on stdout.")] = False,
) -> None:
    """Serve a frozen teacher; students talk to the printed address.

    Starts a local Ray if RAY_ADDRESS is not set. Stop it with Ctrl-C: open conversations get a few seconds.

    Example: preceptor serve teacher.yaml --port 41500

    On a machine of your own: preceptor serve --auth none
    """
    given: dict[str, object] = {"port": port, "auth": auth, "console": _console(console_port)}
    settings = _load(config, given)
    if show_console and settings.console is None:
        settings = _load(config, {**given, "console": {}})
    from services.teacher.files import FilesError
    from services.teacher.local import ServeError, serving

    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores Ctrl-C by default
        signal.signal(number, _interrupt)
    try:
        with contextlib.ExitStack() as stack:
            with console.status(f"starting teacher {settings.name!r} ({settings.model.family})"):
                address = stack.enter_context(serving(settings, num_cpus=num_cpus))
            stack.callback(console.print, "stopping")
            _announce(settings, address, as_json=as_json)
            signal.pause()
    except FilesError as error:
        fail(str(error), EXIT_USAGE)
    except ServeError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def environment(
    config: Annotated[
        Path | None, typer.Argument(help="The YAML file that is going to be served; without one the default.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="The port, instead of the config's.")] = None,
    auth: Annotated[str | None, typer.Option(help="As for `preceptor serve`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines for a shell.")] = False,
) -> None:
    """Print what a Ray needs in its environment, on each node before it starts, to serve a config.

    Ray reads these variables when it is imported. A Ray that `preceptor serve` starts itself has them.

    Example: eval "$(preceptor environment teacher.yaml)" && ray start --head
    """
    variables = serve_environment(_load(config, {"port": port, "auth": auth}))
    if as_json:
        typer.echo(json.dumps(variables))
        return
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def _announce(settings: ServiceConfig, address: str, *, as_json: bool) -> None:
    """Says where a service is that is ready."""
    facts = _facts(settings, address)
    if as_json:
        typer.echo(json.dumps(facts))
    if settings.insecure and settings.tls is None and not is_loopback(settings.host):
        console.print("[bold yellow]insecure:[/] whoever is on the way reads and changes what is said")
    if settings.console is not None:
        console.print(f"its console is at [bold]{facts['console']}[/]")
    name = f" [bold]{settings.name}[/]" if "name" in settings.model_fields_set else ""
    console.print(f"teacher{name} {_where(settings, address)}; Ctrl-C stops it")


def _console(port: int | None) -> dict[str, int] | None:
    """Returns what a config says of the console; None: nothing."""
    return None if port is None else {"port": port}


def _facts(settings: ServiceConfig, address: str) -> dict[str, object]:
    """Returns what is told of a service on stdout."""
    facts: dict[str, object] = {
        "address": address,
        "name": settings.name,
        "any_address": is_any(settings.host),
    }
    if settings.console is not None:
        scheme = "http" if settings.tls is None else "https"
        host = "NAME" if is_any(settings.host) else settings.host
        facts["console"] = f"{scheme}://{socket_address(host, settings.console.port)}"
    return facts


def _where(settings: ServiceConfig, address: str) -> str:
    """Returns how students reach a service, with markup."""
    if not is_any(settings.host):
        return f"is ready at [bold]{address}[/]"
    scheme, _, _ = address.partition("://")
    name = "of this machine" if settings.tls is None else "as in the certificate"
    return (
        f"is ready; it listens on all addresses, port {settings.port}; students say "
        f"[bold]{scheme}://NAME:{settings.port}[/], NAME {name}"
    )


def _load(path: Path | None, given: dict[str, object]) -> ServiceConfig:
    from services.teacher.config import ServiceConfig

    with config_errors(path):
        return ServiceConfig.load(path, **{name: each for name, each in given.items() if each is not None})


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
