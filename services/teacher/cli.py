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
from services.teacher.environment import serve_environment

if TYPE_CHECKING:
    from services.teacher.config import ServiceConfig

__all__ = ["environment", "serve"]


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
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as JSON on stdout.")] = False,
) -> None:
    """Serve a frozen teacher; students talk to the printed address.

    Starts a local Ray if RAY_ADDRESS is not set. Stop it with Ctrl-C: open conversations get a few seconds.

    Example: preceptor serve teacher.yaml --port 41500

    On a machine of your own: preceptor serve --auth none
    """
    settings = _load(config, {"port": port, "auth": auth})
    from services.teacher.files import FilesError
    from services.teacher.local import ServeError, serving

    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores Ctrl-C by default
        signal.signal(number, _interrupt)
    try:
        with contextlib.ExitStack() as stack:
            with console.status(f"starting teacher {settings.name!r} ({settings.model.family})"):
                address = stack.enter_context(serving(settings, num_cpus=num_cpus))
            stack.callback(console.print, "stopping")
            if as_json:
                facts = {"address": address, "name": settings.name, "any_address": is_any(settings.host)}
                typer.echo(json.dumps(facts))
            if settings.insecure and settings.tls is None and not is_loopback(settings.host):
                console.print(
                    "[bold yellow]insecure:[/] whoever is on the way reads and changes what is said"
                )
            console.print(f"teacher [bold]{settings.name}[/] {_where(settings, address)}; Ctrl-C stops it")
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
