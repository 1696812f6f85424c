"""What `preceptor tenant` takes: its options, what they say of a team, and where a token goes."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from preceptor.cli import EXIT_USAGE, console, fail
from preceptor.settings import problems
from services.teacher.tenants import MAX_AMOUNT, MAX_COUNT, MIN_AMOUNT, Tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Days",
    "File",
    "Json",
    "KeepHours",
    "Limit",
    "MaxConversations",
    "MaxQueuedTokens",
    "Name",
    "NewDays",
    "NewMaxConversations",
    "NewMaxQueuedTokens",
    "NewTeachers",
    "NewTokensPerS",
    "NewWeight",
    "NoLimit",
    "Operator",
    "Output",
    "Teachers",
    "TokensPerS",
    "Weight",
    "end_in",
    "handing_over",
    "tenant_of",
    "terms_of",
]

_MAX_DAYS = 36500.0
_MIN_DAYS = 0.001


class Limit(StrEnum):
    """What may be taken away from a team's limits; each is a field of a `Tenant`."""

    MAX_CONVERSATIONS = "max_conversations"
    TOKENS_PER_S = "tokens_per_s"
    MAX_QUEUED_TOKENS = "max_queued_tokens"
    TEACHERS = "teachers"
    EXPIRES = "expires"


File = Annotated[
    Path, typer.Argument(help="The file of tenants; `tenants` of the service's config names it.")
]
Name = Annotated[str, typer.Argument(help="A team: small letters, digits, - and _.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Output = Annotated[
    Path | None,
    typer.Option(help="A file for the token, which only you may read; it is written only if all went well."),
]
KeepHours = Annotated[
    float, typer.Option(min=0, max=24 * _MAX_DAYS, help="Hours that tokens before it stay good.")
]


def _days(text: str) -> Any:
    return typer.Option("--days", min=_MIN_DAYS, max=_MAX_DAYS, help=text)


def _count(text: str) -> Any:
    return typer.Option(min=1, max=MAX_COUNT, help=text)


def _amount(text: str) -> Any:
    return typer.Option(min=MIN_AMOUNT, max=MAX_AMOUNT, help=text)


Days = Annotated[float | None, _days("Days until it expires; default: never.")]
MaxConversations = Annotated[
    int | None,
    _count(
        "Conversations at a time, a replica; default: the service's `max_conversations_per_tenant`, or half "
        "of all."
    ),
]
TokensPerS = Annotated[float | None, _amount("Rows x positions a second, a replica; default: no limit.")]
MaxQueuedTokens = Annotated[
    int | None, _count("Rows x positions that wait, a replica; default: the service's.")
]
Weight = Annotated[float | None, _amount("Its share of service; default: 1.")]
Teachers = Annotated[
    list[str] | None,
    typer.Option("--teacher", help="A teacher it may talk to, maybe one of several; default: all."),
]
Operator = Annotated[
    bool | None,
    typer.Option("--operator/--no-operator", help="Whether it sees how all others fare, not only itself."),
]

NewDays = Annotated[float | None, _days("Days from now until it expires.")]
NewMaxConversations = Annotated[int | None, _count("Conversations at a time, a replica.")]
NewTokensPerS = Annotated[float | None, _amount("Rows x positions a second, a replica.")]
NewMaxQueuedTokens = Annotated[int | None, _count("Rows x positions that wait, a replica.")]
NewWeight = Annotated[float | None, _amount("Its share of service.")]
NewTeachers = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher", help="A teacher it may talk to, maybe one of several; no other that it might before."
    ),
]
NoLimit = Annotated[
    list[Limit] | None,
    typer.Option(help="A limit to take away, maybe one of several; what holds then is as by default."),
]


def terms_of(
    days: float | None,
    max_conversations: int | None,
    tokens_per_s: float | None,
    max_queued_tokens: int | None,
    weight: float | None,
    teachers: list[str] | None,
    *,
    operator: bool | None,
) -> dict[str, Any]:
    """Returns the fields of a `Tenant` that were given."""
    given = {
        "expires": None if days is None else end_in(24 * days, "--days"),
        "max_conversations": max_conversations,
        "tokens_per_s": tokens_per_s,
        "max_queued_tokens": max_queued_tokens,
        "weight": weight,
        "teachers": tuple(teachers) if teachers else None,
        "operator": operator,
    }
    return {name: value for name, value in given.items() if value is not None}


def tenant_of(fields: dict[str, Any]) -> Tenant:
    """Returns the team that has these fields, or ends the command and says which of them is wrong."""
    try:
        return Tenant.model_validate(fields)
    except ValidationError as error:
        fail(problems(error), EXIT_USAGE)


def end_in(hours: float, option: str) -> datetime:
    """Returns when what lasts so long from now is over; ends the command if it is no number."""
    if math.isnan(hours):  # no comparison of typer's finds it out of range
        fail(f"{option}: got nan, expected a number", EXIT_USAGE)
    return datetime.now(UTC) + timedelta(hours=hours)


@contextlib.contextmanager
def handing_over(token: str, output: Path | None, file: Path) -> Iterator[None]:
    """Hands a token over once what is done while open has gone well; a token that was there stays until then.

    Args:
        token: the new one.
        output: its file, which its owner alone may read; None: stdout.
        file: that of the tenants.
    """
    if output is None:
        yield
        typer.echo(token)
        return
    path = output.resolve()
    if path == file.resolve() or (path.exists() and not path.is_file()):
        fail(f"--output: got {output}, expected a file for the token", EXIT_USAGE)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # a pid comes again
    try:
        with open(aside, "x", opener=_for_me) as new:
            new.write(f"{token}\n")
            new.flush()
            os.fsync(new.fileno())
        yield
        aside.replace(path)
    except OSError as error:
        fail(f"{output}: can't be written: {error.strerror}")
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    console.print(f"its token is in {output}", markup=False, highlight=False)


def _for_me(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)
