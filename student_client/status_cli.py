"""`preceptor status`: how a served teacher is, live."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

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

if TYPE_CHECKING:
    from preceptor.v1 import status_pb2 as pb
    from student_client.client import TeacherClient

__all__ = ["status"]

_PERIOD_S = 1.0
_PLAIN_WIDTH = 160


def status(
    address: Address,
    ca: Authority = None,
    certificate: Certificate = None,
    key: Key = None,
    server_name: ServerName = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print it once, as one JSON object on stdout.")
    ] = False,
) -> None:
    """Show how a served teacher is, and how your conversations with it go.

    Of each replica: how long a turn waits there (queue ms), what share of the time it computes (busy), and
    how many tokens a second while it does. Of each conversation: how long a turn waits and is computed, the
    mean. What your team had of the last minute's computation stands beside what its weight gives it. What was
    refused has its reason, and what to do about it.

    Who asks with an operator's token, or where no token is asked for, sees everybody; else your team alone.
    The service's own address tells of all replicas, that of one replica of that one.

    In a terminal it goes on until Ctrl-C; elsewhere, and with --once, it is printed once.

    Exit codes: 0 done, 1 refused, or too old to tell, 2 wrong usage, 4 the teacher can't be reached.

    Example: preceptor status preceptors://teacher.example:41500 --ca ca.pem --token-file support.token

    Example: preceptor status 127.0.0.1:41500 --json | jq '.replicas[].queue_s'
    """
    client = client_of(address, ca, certificate, key, server_name, token_file, insecure=insecure)
    from student_client.status import get_status, plain, shares
    from student_client.status_table import status_tables

    with told_errors():
        first = get_status(client)
    if as_json:
        had = {name: dataclasses.asdict(share) for name, share in shares(first).items()}
        typer.echo(json.dumps({**plain(first), "shares": had}))
        return
    out = Console()
    if once or not out.is_terminal:
        if not out.is_terminal and "COLUMNS" not in os.environ:
            out = Console(width=_PLAIN_WIDTH)
        out.print(status_tables(first))
        return
    with contextlib.suppress(KeyboardInterrupt):
        _follow(client, first, out)


def _follow(client: TeacherClient, latest: pb.GetStatusResponse, out: Console) -> None:
    """Shows the newest status until it is interrupted, also while the service is away."""
    from student_client.errors import TeacherError
    from student_client.status import get_status
    from student_client.status_table import status_tables

    with Live(status_tables(latest), console=out, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(_PERIOD_S)
            problem = ""
            try:
                latest = get_status(client)
            except TeacherError as error:
                problem = str(error)
            live.update(status_tables(latest, problem), refresh=True)
