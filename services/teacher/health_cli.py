"""`preceptor health`: asks a teacher's ports how they are, for people and for probes.

A kubelet's own gRPC probe speaks no TLS. As a probe this is `python -m services.teacher.health_cli`, which
imports neither torch nor Ray: it takes a tenth of the time of `preceptor`, which loads every command.
"""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from pathlib import Path  # noqa: TC003 - typer reads the annotation at run time
from typing import TYPE_CHECKING, Annotated

import grpc
import typer

from preceptor.cli import EXIT_FAILED, EXIT_USAGE, fail, needs_extra
from services.teacher.environment import socket_address

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["health", "statuses", "tcp_statuses"]

_MAX_PORT = 65535
_SERVING = "SERVING"
_SECURE_SCHEME = "preceptors://"


@needs_extra("service", "grpc_health")
def health(
    address: Annotated[
        str, typer.Argument(help="HOST:PORT of a directory or a replica; preceptors://HOST:PORT under TLS.")
    ],
    any_port: Annotated[
        str | None,
        typer.Option(help="FIRST-LAST: instead of PORT, whether one of these serves.", metavar="FIRST-LAST"),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            help="Whom to trust, PEM: an authority, or the certificate itself; default: gRPC's list."
        ),
    ] = None,
    server_name: Annotated[
        str | None, typer.Option(help="The name in the certificate; default: HOST.")
    ] = None,
    tcp: Annotated[
        bool,
        typer.Option("--tcp", help="Ask only whether something listens, where students show certificates."),
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for an answer.")] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Say whether a teacher takes conversations; exit code 0 if it does, 1 if not.

    Example: preceptor health preceptors://teacher.example:41500 --ca ca.pem
    """
    host, ports = _targets(address, any_port)
    if tcp:
        found = tcp_statuses(host, ports, timeout)
    else:
        is_secure = address.startswith(_SECURE_SCHEME)
        found = statuses(host, ports, _credentials(ca) if is_secure else None, server_name, timeout)
    is_serving = _SERVING in found.values()
    if as_json:
        typer.echo(json.dumps({"serving": is_serving, "ports": found}))
    else:
        typer.echo("\n".join(f"{socket_address(host, port)} {status}" for port, status in found.items()))
    raise typer.Exit(0 if is_serving else EXIT_FAILED)


def statuses(
    host: str,
    ports: Sequence[int],
    credentials: grpc.ChannelCredentials | None,
    server_name: str | None,
    timeout_s: float,
) -> dict[int, str]:
    """Asks some ports at once for their health.

    Args:
        host: where they are.
        ports: which.
        credentials: for TLS; None: in the clear.
        server_name: what the certificate says; None: `host`.
        timeout_s: seconds for all of them together.

    Returns:
        By port, what `grpc.health.v1` says, or the gRPC status if it says nothing.
    """
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    found = {}
    with ExitStack() as stack:
        calls = {}
        for port in ports:
            target = socket_address(host, port)
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
            calls[port] = check.future(HealthCheckRequest(), timeout=timeout_s)
        for port, call in calls.items():
            try:
                found[port] = HealthCheckResponse.ServingStatus.Name(call.result().status)
            except grpc.RpcError as error:
                found[port] = error.code().name
    return found


def tcp_statuses(host: str, ports: Sequence[int], timeout_s: float) -> dict[int, str]:
    """Tries to connect to some ports; what listens counts as serving."""
    found = {}
    for port in ports:
        try:
            socket.create_connection((host, port), timeout_s / len(ports)).close()
        except OSError:
            found[port] = grpc.StatusCode.UNAVAILABLE.name
        else:
            found[port] = _SERVING
    return found


def _targets(address: str, any_port: str | None) -> tuple[str, Sequence[int]]:
    """Returns host and ports."""
    host, separator, port = address.rpartition("://")[2].rpartition(":")
    if not (separator and host and _is_port(port)):
        fail(f"ADDRESS: got {address!r}, expected HOST:PORT", EXIT_USAGE)
    host = host.strip("[]")
    if any_port is None:
        return host, [int(port)]
    first, separator, last = any_port.partition("-")
    if not (_is_port(first) and _is_port(last) and int(first) <= int(last)):
        fail(f"--any-port: got {any_port!r}, expected FIRST-LAST", EXIT_USAGE)
    return host, range(int(first), int(last) + 1)


def _is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) <= _MAX_PORT


def _credentials(ca: Path | None) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(None if ca is None else ca.read_bytes())
    except OSError as error:
        fail(f"--ca: {ca} can't be read: {error.strerror}", EXIT_USAGE)


if __name__ == "__main__":
    typer.run(health)
