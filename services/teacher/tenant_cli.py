"""`preceptor tenant`: who may talk to a teacher."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from preceptor.cli import EXIT_USAGE, config_errors, console, fail
from services.teacher.tenants import TENANT_NAME, Tenant, TenantKey, Tenants, forget_unfinished, new_key

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Say who may talk to a teacher: teams, each with a token. A running service sees the changes.",
)

File = Annotated[
    Path, typer.Argument(help="The file of tenants; `tenants` of the service's config names it.")
]
Name = Annotated[str, typer.Argument(help="A team: small letters, digits, - and _.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


Days = Annotated[float | None, typer.Option(min=0, help="Days until it expires; default: never.")]
MaxConversations = Annotated[
    int | None, typer.Option(min=1, help="Conversations at a time, a replica; default: no limit.")
]
TokensPerS = Annotated[
    float | None, typer.Option(min=0.001, help="Rows x positions a second, a replica; default: no limit.")
]
MaxQueuedTokens = Annotated[
    int | None, typer.Option(min=1, help="Rows x positions that wait, a replica; default: the service's.")
]
Weight = Annotated[float | None, typer.Option(min=0.001, help="Its share of service; default: 1.")]
Teachers = Annotated[
    list[str] | None,
    typer.Option("--teacher", help="A teacher it may talk to, maybe one of several; default: all."),
]


@app.command("add")
def add(
    file: File,
    name: Name,
    days: Days = None,
    max_conversations: MaxConversations = None,
    tokens_per_s: TokensPerS = None,
    max_queued_tokens: MaxQueuedTokens = None,
    weight: Weight = None,
    teachers: Teachers = None,
) -> None:
    """Add a team and print its token, which is shown this once.

    Example: preceptor tenant add tenants.yaml support > support.token
    """
    if re.fullmatch(TENANT_NAME, name) is None:
        fail(f"NAME: got {name!r}, expected small letters, digits, - and _", EXIT_USAGE)
    token, key = new_key(name)
    terms = _terms(days, max_conversations, tokens_per_s, max_queued_tokens, weight, teachers)
    tenant = Tenant(keys=(key,), **terms)
    with _alone(file):
        tenants = _load(file) if file.exists() else Tenants(tenants={})
        if name in tenants.tenants and tenants.tenants[name].keys:
            fail(f"{name}: is there already; `rotate` gives it a new token", EXIT_USAGE)
        tenants.changed(name, tenant).save(file)
    typer.echo(token)


@app.command("change")
def change(
    file: File,
    name: Name,
    days: Days = None,
    max_conversations: MaxConversations = None,
    tokens_per_s: TokensPerS = None,
    max_queued_tokens: MaxQueuedTokens = None,
    weight: Weight = None,
    teachers: Teachers = None,
) -> None:
    """Change what a team may; what is not named stays, and so do its tokens.

    Shares and queued tokens count at once, the rest for new conversations. Limits are taken away in the file.

    Example: preceptor tenant change tenants.yaml support --weight 3
    """
    terms = _terms(days, max_conversations, tokens_per_s, max_queued_tokens, weight, teachers)
    if not terms:
        fail("got nothing to change, expected an option", EXIT_USAGE)
    with _alone(file):
        tenants = _load(file)
        tenants.changed(name, _find(tenants, name).model_copy(update=terms)).save(file)
    console.print(f"{name}: changed")


def _terms(
    days: float | None,
    max_conversations: int | None,
    tokens_per_s: float | None,
    max_queued_tokens: int | None,
    weight: float | None,
    teachers: list[str] | None,
) -> dict[str, Any]:
    """Returns the fields of a `Tenant` that were given."""
    given = {
        "expires": None if days is None else _in(days * 24),
        "max_conversations": max_conversations,
        "tokens_per_s": tokens_per_s,
        "max_queued_tokens": max_queued_tokens,
        "weight": weight,
        "teachers": tuple(teachers) if teachers else None,
    }
    return {name: value for name, value in given.items() if value is not None}


@app.command("list")
def list_(file: File, as_json: Json = False) -> None:
    """Show the teams."""
    tenants = _load(file).tenants
    facts: list[dict[str, Any]] = [
        {
            "name": name,
            "tokens": len(tenant.keys),
            "expires": None if tenant.expires is None else tenant.expires.isoformat(timespec="minutes"),
            "max_conversations": tenant.max_conversations,
            "tokens_per_s": tenant.tokens_per_s,
            "max_queued_tokens": tenant.max_queued_tokens,
            "weight": tenant.weight,
            "teachers": None if tenant.teachers is None else list(tenant.teachers),
        }
        for name, tenant in tenants.items()
    ]
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table("tenant", "tokens", "expires", "conversations", "tokens/s", "queued", "weight", "teachers")
    for each in facts:
        each["teachers"] = None if each["teachers"] is None else ", ".join(each["teachers"])
        table.add_row(*("" if value is None else str(value) for value in each.values()))
    console.print(table)


@app.command("rotate")
def rotate(
    file: File,
    name: Name,
    keep_hours: Annotated[float, typer.Option(min=0, help="Hours that tokens before it stay good.")] = 24.0,
) -> None:
    """Give a team a new token and print it; those before it end after a while."""
    token, key = new_key(name)
    end, now = _in(keep_hours), _in(0)
    with _alone(file):
        tenants = _load(file)
        tenant = _find(tenants, name)
        good = [each for each in tenant.keys if each.expires is None or each.expires > now]
        kept = [_ending(each, end) for each in good] if keep_hours else []
        tenants.changed(name, tenant.model_copy(update={"keys": (key, *kept)})).save(file)
    typer.echo(token)


@app.command("revoke")
def revoke(file: File, name: Name) -> None:
    """End all tokens of a team, and its open conversations within seconds."""
    with _alone(file):
        tenants = _load(file)
        tenants.changed(name, _find(tenants, name).model_copy(update={"keys": ()})).save(file)
    console.print(f"{name}: revoked")


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keeps other commands from changing the file while open: the last one would undo what the first did."""
    place = file.resolve()  # whatever links lead to it
    lock = place.with_name(f".{place.name}.lock")
    try:
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            forget_unfinished(place)
            yield
    except OSError as error:
        fail(f"{file}: can't be written: {error.strerror}")


def _ending(key: TenantKey, end: datetime) -> TenantKey:
    expires = end if key.expires is None else min(key.expires, end)
    return key.model_copy(update={"expires": expires})


def _in(hours: float) -> datetime:
    return datetime.now(UTC) + timedelta(hours=hours)


def _load(file: Path) -> Tenants:
    with config_errors(file):
        return Tenants.load(file)


def _find(tenants: Tenants, name: str) -> Tenant:
    if name not in tenants.tenants:
        fail(f"NAME: got {name!r}, expected one of {', '.join(tenants.tenants) or 'none'}", EXIT_USAGE)
    return tenants.tenants[name]
