"""How a service is, as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from preceptor.names import UNKNOWN
from preceptor.v1 import teacher_pb2 as teacher
from student_client.status import advice_on, shares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from preceptor.v1 import status_pb2 as pb

__all__ = ["status_tables"]

_NUM_CONVERSATIONS = 15
_NUM_REFUSALS = 8
_NUM_ID = 12  # enough to find it in a log
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def status_tables(status: pb.GetStatusResponse, problem: str = "") -> RenderableType:
    """Returns the tables.

    Args:
        status: as a service told it.
        problem: why there is no newer one, if so.
    """
    sees = "sees everybody" if status.sees_all else "sees its own part"
    who = f"{status.tenant} {sees}" if status.tenant else sees
    head = Text(f"teacher {status.teacher}, service {status.service_version}; {who}", style="bold")
    parts = [_replicas(status), _tenants(status), _conversations(status), _refusals(status)]
    trouble = [Text(f"no newer status: {problem}; trying again", style="red")] if problem else []
    return Group(head, *trouble, *(part for part in parts if part is not None))


def _replicas(status: pb.GetStatusResponse) -> RenderableType:
    if not status.replicas:
        return Text("no replica takes conversations", style="red")
    table = _table(f"replicas: {len(status.replicas)}", "replica", "up")
    _numbers(table, "conv.", "queue ms", "busy", "tokens/s busy", "turns/pass", "cached")
    for replica in status.replicas:
        num_rows = replica.num_cached_rows + replica.num_read_rows
        table.add_row(
            replica.address,
            _span(replica.uptime_s),
            str(replica.num_conversations),
            f"{1000 * replica.queue_s:.0f}",
            f"{replica.busy_share:.0%}",
            f"{replica.tokens_per_s:.0f}",
            _each(replica.num_computed, replica.num_passes),
            f"{replica.num_cached_rows / num_rows:.0%}" if num_rows else "",
        )
    return table


def _tenants(status: pb.GetStatusResponse) -> RenderableType | None:
    if not status.tenants:
        return Text("nobody has talked yet") if status.sees_all else Text("you have not talked yet")
    table = _table("tenants" if status.sees_all else "you", "tenant")
    _numbers(table, "conv.", "turns", "tokens", "queue p50", "p99 ms", "had", "weight's", "refused")
    had = shares(status)
    for tenant in status.tenants:
        share = had.get(tenant.name)
        due = "" if share is None or share.due is None else f"{share.due:.0%}"
        table.add_row(
            _name(tenant.name),
            str(tenant.num_conversations),
            str(tenant.num_turns),
            str(tenant.num_tokens),
            f"{tenant.queue_p50_ms:.1f}",
            f"{tenant.queue_p99_ms:.1f}",
            "" if share is None else f"{share.had:.0%}",
            due or (f"({tenant.weight:g})" if tenant.weight else ""),
            str(tenant.num_refusals),
        )
    table.caption = "had: of the last minute's computation; weight's: the share that the weight gives" + (
        "" if status.sees_all else " (others' weights are not told: here it is the weight)"
    )
    table.caption_justify = "left"
    return table


def _conversations(status: pb.GetStatusResponse) -> RenderableType | None:
    if not status.conversations:
        return None
    num_open = sum(not each.closed_s for each in status.conversations)
    whose = "conversations" if status.sees_all else "your conversations"
    left_out = len(status.conversations) - _NUM_CONVERSATIONS
    more = f"; {left_out} more not shown" if left_out > 0 else ""
    table = _table(
        f"{whose}: {num_open} open{more}", "conversation", *["tenant"] * status.sees_all, "replica"
    )
    table.add_column("state", overflow="fold")
    _numbers(table, "turns", "queue ms", "compute ms", "MB", "refused")
    for each in sorted(status.conversations, key=lambda each: each.closed_s > 0)[:_NUM_CONVERSATIONS]:
        state = f"open {_span(status.time_s - each.opened_s)}"
        if each.closed_s:
            state = f"closed {_span(status.time_s - each.closed_s)} ago: {each.why}"
        table.add_row(
            each.id[:_NUM_ID],
            *[_name(each.tenant)] * status.sees_all,
            each.replica,
            Text(state),
            str(each.num_turns),
            _each(1000 * each.queue_s, each.num_turns),
            _each(1000 * each.compute_s, each.num_turns),
            f"{each.num_bytes / 1e6:.1f}",
            str(each.num_refusals),
        )
    table.caption, table.caption_justify = "queue ms and compute ms: of a turn, the mean", "left"
    return table


def _refusals(status: pb.GetStatusResponse) -> RenderableType | None:
    if not status.refusals:
        return None
    table = _table("refused or failed lately", "ago", *["tenant"] * status.sees_all)
    _numbers(table, "times")
    for column in ("reason", "message", "what to do"):
        table.add_column(column, overflow="fold", ratio=None if column == "reason" else 1)
    for each in status.refusals[:_NUM_REFUSALS]:
        reason = teacher.Reason.Name(each.reason).removeprefix("REASON_").lower().replace("_", " ")
        table.add_row(
            _span(status.time_s - each.time_s),
            *[_name(each.tenant)] * status.sees_all,
            str(each.count),
            Text(reason, style="yellow"),
            Text(each.message),
            advice_on(each.reason),
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _numbers(table: Table, *columns: str) -> None:
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)


def _name(name: str) -> Text:
    return Text(name or UNKNOWN)  # as it is: a name is no markup


def _each(total: float, count: int) -> str:
    return f"{total / count:.1f}" if count else ""


def _span(seconds: float) -> str:
    """Returns a time in its two largest units."""
    whole = max(int(seconds), 0)
    units: Sequence[tuple[int, str, int, str]] = (
        (_DAY_S, "d", _HOUR_S, "h"),
        (_HOUR_S, "h", _MINUTE_S, "m"),
        (_MINUTE_S, "m", 1, "s"),
    )
    for large, large_name, small, small_name in units:
        if whole >= large:
            return f"{whole // large}{large_name} {whole % large // small}{small_name}"
    return f"{whole}s"
