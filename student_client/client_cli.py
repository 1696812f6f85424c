"""What the commands that ask a teacher have in common: its address, how to know it, and how to be known."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from preceptor.cli import EXIT_UNREACHABLE, EXIT_USAGE, fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from student_client.client import TeacherClient

__all__ = [
    "Address",
    "Authority",
    "Certificate",
    "Insecure",
    "Key",
    "ServerName",
    "TokenFile",
    "client_of",
    "told_errors",
]

Address = Annotated[
    str, typer.Argument(help="For example preceptor://127.0.0.1:41500, or preceptors:// under TLS.")
]
Authority = Annotated[
    Path | None,
    typer.Option("--ca", help="The authority of the teacher's certificate, PEM; default: the system's."),
]
Certificate = Annotated[Path | None, typer.Option(help="Your certificate, PEM, if it wants one.")]
Key = Annotated[Path | None, typer.Option(help="Its private key, PEM.")]
ServerName = Annotated[
    str | None, typer.Option(help="The name in the teacher's certificate; default: the address's host.")
]
TokenFile = Annotated[
    Path | None, typer.Option(help="The file with your team's token; default: PRECEPTOR_TOKEN, if set.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Show it to other machines in the clear: nobody else listens.")
]


def client_of(
    address: str,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    server_name: str | None,
    token_file: Path | None,
    *,
    insecure: bool,
) -> TeacherClient:
    """Returns the client that a command's options describe; ends the command if they are wrong."""
    from student_client.client import TeacherClient
    from student_client.options import ClientOptions

    if (certificate is None) != (key is None):
        fail("--certificate, --key: got one of them, expected both or none", EXIT_USAGE)
    tls = {"ca_file": ca, "certificate_file": certificate, "key_file": key, "server_name": server_name}
    options = {
        "token_file": token_file,
        "insecure": insecure,
        "tls": {name: value for name, value in tls.items() if value is not None} or None,
    }
    try:
        return TeacherClient(address, ClientOptions.model_validate(options))
    except ValueError as error:
        fail(str(error), EXIT_USAGE)


@contextlib.contextmanager
def told_errors() -> Iterator[None]:
    """Ends the command, with the code that fits, if a teacher does not answer while open."""
    from student_client.errors import TeacherError, TeacherUnavailableError

    try:
        yield
    except ValueError as error:
        fail(str(error), EXIT_USAGE)
    except TeacherUnavailableError as error:
        fail(str(error), EXIT_UNREACHABLE)
    except TeacherError as error:
        fail(str(error))
