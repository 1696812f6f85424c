"""`preceptor health`: asks a teacher's ports how they are, for people and for probes.

A kubelet's own gRPC probe speaks no TLS. As a probe this is `python -m services.teacher.health_cli`, which
imports neither torch nor Ray: it takes a tenth of the time of `preceptor`, which loads every command.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is imported; what failed is said below

import grpc
import typer

from preceptor.authorities import authorities_of, system_authorities
from preceptor.cli import EXIT_FAILED, EXIT_USAGE, fail, needs_extra
from preceptor.hosts import host_of, is_port, parse_address
from services.teacher.environment import socket_address

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Answer", "grpc_answers", "health", "tcp_answers"]

_SERVING = "SERVING"

Where = Annotated[
    str,
    typer.Argument(
        help="HOST:PORT of a directory or replica, or several with commas; preceptors://HOST:PORT under TLS."
    ),
]
AnyPort = Annotated[
    str | None,
    typer.Option(help="FIRST-LAST: instead of PORT, whether one of these serves.", metavar="FIRST-LAST"),
]
Ca = Annotated[
    Path | None,
    typer.Option(help="Whom to trust, PEM: an authority, or the certificate itself; default: the system's."),
]
ServerName = Annotated[str | None, typer.Option(help="The name in the certificate; default: HOST.")]
Certificate = Annotated[
    Path | None, typer.Option(help="The certificate to show, PEM, where the teacher asks for one.")
]
Key = Annotated[Path | None, typer.Option(help="Its private key, PEM.")]
Tcp = Annotated[
    bool, typer.Option("--tcp", help="Ask only whether something listens, where students show certificates.")
]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds to wait for an answer.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


class Answer(NamedTuple):
    """What a port says.

    Attributes:
        status: what `grpc.health.v1` says, or the gRPC status if it says nothing.
        reason: why it says nothing; empty if it says something.
    """

    status: str
    reason: str = ""


@needs_extra("service", "grpc_health")
def health(
    address: Where,
    any_port: AnyPort = None,
    ca: Ca = None,
    server_name: ServerName = None,
    certificate: Certificate = None,
    key: Key = None,
    tcp: Tcp = False,
    timeout: Timeout = 3.0,
    as_json: Json = False,
) -> None:
    """Say whether a teacher takes conversations; exit code 0 if one of the addresses does, 1 if none.

    Example: preceptor health preceptors://teacher.example:41500 --ca ca.pem
    """
    targets, is_secure = _targets(address, any_port)
    if not is_secure and any((ca, certificate, key, server_name)):
        given = "--ca, --certificate, --key, --server-name"
        fail(f"{given}: got one for an address in the clear, expected preceptors://", EXIT_USAGE)
    if tcp:
        found = tcp_answers(targets, timeout)
    else:
        credentials = _credentials(ca, certificate, key) if is_secure else None
        found = grpc_answers(targets, credentials, server_name, timeout)
    is_serving = any(answer.status == _SERVING for answer in found.values())
    statuses = {target: answer.status for target, answer in found.items()}
    if as_json:
        typer.echo(json.dumps({"serving": is_serving, "addresses": statuses}))
    else:
        typer.echo("\n".join(f"{target} {status}" for target, status in statuses.items()))
    if is_serving:
        return
    for target, answer in found.items():
        if answer.reason:
            typer.echo(f"{target}: {answer.reason}", err=True)
    raise typer.Exit(EXIT_FAILED)


def grpc_answers(
    targets: Sequence[str],
    credentials: grpc.ChannelCredentials | None,
    server_name: str | None,
    timeout_s: float,
) -> dict[str, Answer]:
    """Asks some ports at once for their health.

    Args:
        targets: HOST:PORT of each.
        credentials: for TLS; None: in the clear.
        server_name: what the certificates say; None: the host.
        timeout_s: seconds for all of them together.

    Returns:
        The answers, by target.
    """
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    found = {}
    with ExitStack() as stack:
        calls = {}
        for target in targets:
            channel = stack.enter_context(
                grpc.insecure_channel(target, options)
                if credentials is None
                else grpc.secure_channel(target, credentials, options)
            )
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=HealthCheckRequest.SerializeToString,
                response_deserializer=HealthCheckResponse.FromString,
            )
            calls[target] = check.future(HealthCheckRequest(), timeout=timeout_s)
        for target, call in calls.items():
            try:
                found[target] = Answer(HealthCheckResponse.ServingStatus.Name(call.result().status))
            except grpc.RpcError as error:
                found[target] = Answer(error.code().name, error.details() or "")
    return found


def tcp_answers(targets: Sequence[str], timeout_s: float) -> dict[str, Answer]:
    """Tries to connect to some ports; what listens counts as serving."""
    found = {}
    for target in targets:
        port = int(target.rpartition(":")[2])
        try:
            socket.create_connection((host_of(target), port), timeout_s / len(targets)).close()
        except OSError as error:
            found[target] = Answer(grpc.StatusCode.UNAVAILABLE.name, str(error))
        else:
            found[target] = Answer(_SERVING)
    return found


def _targets(address: str, any_port: str | None) -> tuple[list[str], bool]:
    """Returns HOST:PORT of all that are to be asked, and whether that is under TLS."""
    try:
        parsed = parse_address(address)
    except ValueError as error:
        fail(str(error), EXIT_USAGE)
    if any_port is None:
        split = [(host_of(each), int(each.rpartition(":")[2])) for each in parsed.replicas]
        return [socket_address(host, port) for host, port in split], parsed.is_secure
    first, separator, last = any_port.partition("-")
    if not (separator and is_port(first) and is_port(last) and int(first) <= int(last)):
        fail(f"--any-port: got {any_port!r}, expected FIRST-LAST", EXIT_USAGE)
    hosts = dict.fromkeys(map(host_of, parsed.replicas))
    ports = range(int(first), int(last) + 1)
    return [socket_address(host, port) for host in hosts for port in ports], parsed.is_secure


def _credentials(ca: Path | None, certificate: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    if (certificate is None) != (key is None):
        fail("--certificate, --key: got one, expected both or none", EXIT_USAGE)
    try:
        authorities = system_authorities() if ca is None else authorities_of(ca)
        chain, secret = (None if path is None else path.read_bytes() for path in (certificate, key))
    except OSError as error:
        fail(f"{error.filename}: can't be read: {error.strerror}", EXIT_USAGE)
    except ValueError as error:
        fail(f"--ca: {error}", EXIT_USAGE)
    return grpc.ssl_channel_credentials(authorities, secret, chain)


if __name__ == "__main__":
    typer.run(health)
