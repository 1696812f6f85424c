"""`preceptor tenant`: who may talk to a teacher."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from preceptor.cli import EXIT_USAGE, config_errors, console, fail
from services.teacher.tenant_options import (
    Days,
    File,
    Json,
    KeepHours,
    Limit,
    MaxConversations,
    MaxQueuedTokens,
    Name,
    NewDays,
    NewMaxConversations,
    NewMaxQueuedTokens,
    NewTeachers,
    NewTokensPerS,
    NewWeight,
    NoLimit,
    Operator,
    Output,
    Teachers,
    TokensPerS,
    Weight,
    end_in,
    handing_over,
    tenant_of,
    terms_of,
)
from services.teacher.tenants import TENANT_NAME, Tenant, TenantKey, Tenants, forget_unfinished, new_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Say who may talk to a teacher: teams, each with a token. A running service sees the changes.",
)

_COLUMNS = {
    "name": "tenant",
    "state": "state",
    "tokens": "tokens",
    "expires": "expires",
    "max_conversations": "conversations",
    "tokens_per_s": "tokens/s",
    "max_queued_tokens": "queued",
    "weight": "weight",
    "teachers": "teachers",
    "operator": "operator",
}


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
    operator: Operator = None,
    output: Output = None,
) -> None:
    """Add a team and hand over its token, which is shown this once: on stdout, or in a file.

    Example: preceptor tenant add tenants.yaml support --output support.token
    """
    if re.fullmatch(TENANT_NAME, name) is None:
        fail(f"NAME: got {name!r}, expected small letters, digits, - and _", EXIT_USAGE)
    token, key = new_key(name)
    terms = terms_of(
        days, max_conversations, tokens_per_s, max_queued_tokens, weight, teachers, operator=operator
    )
    tenant = tenant_of({"keys": (key,), **terms})
    with handing_over(token, output, file), _alone(file):
        tenants = _load(file) if file.exists() else Tenants(tenants={})
        if name in tenants.tenants:
            state = " already" if tenants.tenants[name].keys else ", revoked"
            fail(f"{name}: is there{state}; `rotate` gives it a token", EXIT_USAGE)
        tenants.changed(name, tenant).save(file)


@app.command("change")
def change(
    file: File,
    name: Name,
    days: NewDays = None,
    max_conversations: NewMaxConversations = None,
    tokens_per_s: NewTokensPerS = None,
    max_queued_tokens: NewMaxQueuedTokens = None,
    weight: NewWeight = None,
    teachers: NewTeachers = None,
    operator: Operator = None,
    no_limit: NoLimit = None,
) -> None:
    """Change what a team may; what is not named stays, and so do its tokens.

    Shares and queued tokens count at once, the rest for new conversations.

    Example: preceptor tenant change tenants.yaml support --weight 3 --no-limit expires
    """
    terms = terms_of(
        days, max_conversations, tokens_per_s, max_queued_tokens, weight, teachers, operator=operator
    )
    lifted: dict[str, Any] = {limit.value: None for limit in map(Limit, no_limit or ())}
    if not terms and not lifted:
        fail("got nothing to change, expected an option", EXIT_USAGE)
    for limit in terms.keys() & lifted.keys():
        fail(f"--no-limit: got {limit}, which another option sets; expected one of them", EXIT_USAGE)
    with _alone(file):
        tenants = _load(file)
        tenant = tenant_of({**_find(tenants, name).model_dump(), **terms, **lifted})
        tenants.changed(name, tenant).save(file)
    console.print(f"{name}: changed")


@app.command("list")
def list_(file: File, as_json: Json = False) -> None:
    """Show the teams; the tokens counted are those that let somebody in."""
    now = datetime.now(UTC)
    facts: list[dict[str, Any]] = [
        {
            "name": name,
            "state": _state(tenant, now),
            "tokens": len(tenant.good_keys(now)),
            "expires": None if tenant.expires is None else _minute(tenant.expires),
            "max_conversations": tenant.max_conversations,
            "tokens_per_s": tenant.tokens_per_s,
            "max_queued_tokens": tenant.max_queued_tokens,
            "weight": tenant.weight,
            "teachers": None if tenant.teachers is None else list(tenant.teachers),
            "operator": tenant.operator,
        }
        for name, tenant in _load(file).tenants.items()
    ]
    if as_json:
        typer.echo(json.dumps(facts))
        return
    console.print(_table(facts))


@app.command("rotate")
def rotate(file: File, name: Name, keep_hours: KeepHours = 24.0, output: Output = None) -> None:
    """Give a team a new token, on stdout or in a file; those before it end after a while.

    Example: preceptor tenant rotate tenants.yaml support --output support.token
    """
    token, key = new_key(name)
    end, now = end_in(keep_hours, "--keep-hours"), datetime.now(UTC)
    with handing_over(token, output, file), _alone(file):
        tenants = _load(file)
        tenant = _find(tenants, name)
        if tenant.expires is not None and tenant.has_ended(now):
            fail(f"{name}: ended {_minute(tenant.expires)}; `change --days` first", EXIT_USAGE)
        kept = [_ending(each, end) for each in tenant.good_keys(now)] if keep_hours else []
        tenants.changed(name, tenant.model_copy(update={"keys": (key, *kept)})).save(file)


@app.command("revoke")
def revoke(file: File, name: Name) -> None:
    """End all tokens of a team, and its open conversations within seconds; its limits stay in the file."""
    with _alone(file):
        tenants = _load(file)
        tenants.changed(name, _find(tenants, name).model_copy(update={"keys": ()})).save(file)
    console.print(f"{name}: revoked")


@app.command("remove")
def remove(file: File, name: Name) -> None:
    """Forget a team that was revoked or has expired, and its limits."""
    with _alone(file):
        tenants = _load(file)
        number = len(_find(tenants, name).good_keys(datetime.now(UTC)))
        if number:
            fail(f"{name}: tokens: got {number} that are good, expected none; `revoke` first", EXIT_USAGE)
        tenants.without(name).save(file)
    console.print(f"{name}: removed")


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keeps other commands from changing the file while open: the last one would undo what the first did."""
    file = file.resolve()  # one lock whatever links lead there
    if file.is_dir():
        fail(f"FILE: got {file}, a folder; expected a file of tenants", EXIT_USAGE)
    lock = file.with_name(f".{file.name}.lock")
    try:
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            forget_unfinished(file)
            yield
    except OSError as error:
        fail(f"{file}: can't be written: {error.strerror}")


def _ending(key: TenantKey, end: datetime) -> TenantKey:
    expires = end if key.expires is None else min(key.expires, end)
    return key.model_copy(update={"expires": expires})


def _state(tenant: Tenant, now: datetime) -> str:
    if not tenant.keys:
        return "revoked"
    return "good" if tenant.good_keys(now) else "expired"


def _table(facts: list[dict[str, Any]]) -> Table:
    """Returns what is said of somebody at least, so that it fits a terminal."""
    rows = [
        {
            **each,
            "teachers": ", ".join(each["teachers"] or ()) or None,
            "operator": "yes" if each["operator"] else None,
        }
        for each in facts
    ]
    columns = [column for column in _COLUMNS if any(row[column] is not None for row in rows)]
    table = Table(*(_COLUMNS[column] for column in columns))
    for row in rows:
        table.add_row(*("" if row[column] is None else str(row[column]) for column in columns))
    return table


def _minute(when: datetime) -> str:
    return when.isoformat(timespec="minutes")


def _load(file: Path) -> Tenants:
    with config_errors(file):
        return Tenants.load(file)


def _find(tenants: Tenants, name: str) -> Tenant:
    if name not in tenants.tenants:
        fail(f"NAME: got {name!r}, expected one of {', '.join(tenants.tenants) or 'none'}", EXIT_USAGE)
    return tenants.tenants[name]
