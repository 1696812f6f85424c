"""What a service tells of itself: all replicas together, the last minutes, and to each tenant its own part.

Replicas' counters begin anew when they do. So what is added up here is what grew since a replica's last word:
no sum falls when a replica goes. Knows neither Ray nor gRPC, and no torch: the directory's small process
imports it too.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import preceptor
from preceptor.names import OTHERS, UNKNOWN
from preceptor.v1 import status_pb2 as pb
from services.teacher.history import HISTORY_S, SAMPLED, History
from services.teacher.recent import RecentRefusals
from services.teacher.signals import MAX_TENANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from preceptor.v1 import teacher_pb2 as teacher
    from services.teacher.gate import Pass

__all__ = ["StatusBoard"]

_MAX_SILENT_S = 3.0
_MAX_GONE = 32
_SAME_S = 0.001  # what rounding makes of the moment at which a replica came up
_GONE = "its replica went away"
_SUMMED = (*SAMPLED, "request_bytes", "answer_bytes")

# What one answer tells at most; a student's gRPC takes 4 MiB.
_MAX_CONVERSATIONS = 1000
_MAX_REFUSALS = 200
_MAX_TENANTS_IN_HISTORY = 50


@dataclass
class _Heard:
    """What a replica last said, and when."""

    message: pb.GetStatusResponse
    heard_s: float
    is_leaving: bool = False
    is_gone: bool = False  # another has its address

    @property
    def replica(self) -> pb.ReplicaStatus:
        return self.message.replicas[0]

    @property
    def began_s(self) -> float:
        return self.message.time_s - self.replica.uptime_s

    @cached_property
    def tenants(self) -> dict[str, pb.TenantStatus]:
        return {tenant.name: tenant for tenant in self.message.tenants}

    def is_alive(self, now_s: float) -> bool:
        return not self.is_gone and now_s - self.heard_s <= _MAX_SILENT_S


class StatusBoard:
    """Keeps how a service is and was.

    Args:
        teacher: the teacher's name.
        clock: seconds of the epoch.
    """

    def __init__(self, teacher: str, clock: Callable[[], float] = time.time) -> None:
        self._teacher = teacher
        self._clock = clock
        self._began_s = clock()
        self._replicas: dict[str, _Heard] = {}
        self._gone: deque[_Heard] = deque(maxlen=_MAX_GONE)
        self._totals: dict[str, pb.TenantStatus] = {}
        self._refusals = RecentRefusals()
        self._history = History(self._began_s)

    def hear(self, message: pb.GetStatusResponse, *, is_leaving: bool = False) -> None:
        """Takes a replica's word of itself.

        Args:
            message: with the one replica, its tenants, conversations and refusals; it is kept.
            is_leaving: whether it takes no conversations any more.
        """
        heard = _Heard(message, self._clock(), is_leaving)
        address = heard.replica.address
        before = self._replicas.get(address)
        if before is not None and abs(heard.began_s - before.began_s) > _SAME_S:
            before.is_gone = True
            self._gone.append(before)
            before = None
        # What a replica did before this board was there is no news.
        is_news = before is not None or heard.began_s >= self._began_s
        # One that was silent until it was forgotten was counted, up to then.
        was_forgotten = before is None and self._began_s <= heard.began_s < heard.heard_s - HISTORY_S
        self._add(heard, heard if was_forgotten else before, is_news=is_news)
        self._replicas[address] = heard
        self._look(heard.heard_s)

    def refused(self, tenant: str, peer: str, reason: teacher.Reason, message: str) -> None:
        """Counts a call that was not let in here; see `access.refuse`."""
        refusal = pb.Refusal(
            time_s=self._clock(), tenant=tenant, peer=peer, reason=reason, message=message, count=1
        )
        self._refusals.add(refusal)
        self._grow(tenant or UNKNOWN, {"num_refusals": 1}, is_news=True)

    def answer(self, shown: Pass | None, history_s: int = 0) -> pb.GetStatusResponse:
        """Returns how the service is, as the one who asks may see it.

        Args:
            shown: what the one who asks was let in with; None: no token is asked for, and all see all.
            history_s: seconds of samples that are wanted.
        """
        now_s = self._clock()
        self._look(now_s)
        only = None if shown is None or shown.operator else shown.tenant
        totals = [total for total in self._totals.values() if only in (None, total.name)]
        response = pb.GetStatusResponse(
            time_s=now_s,
            teacher=self._teacher,
            service_version=preceptor.__version__,
            tenant="" if shown is None else shown.tenant,
            sees_all=only is None,
            replicas=self._taking(now_s),
            tenants=self._tenants(totals, now_s),
            conversations=self._conversations(only, now_s),
            refusals=self._told_refusals(only),
            history=self._history_of(only, now_s - history_s) if history_s else (),
        )
        if only is not None:
            for conversation in response.conversations:
                conversation.peer = ""
            for refusal in response.refusals:
                refusal.peer = ""
        return response

    def _add(self, heard: _Heard, before: _Heard | None, *, is_news: bool) -> None:
        """Adds what a replica's tenants had since its last word."""
        known = {} if before is None else before.tenants
        for name, tenant in heard.tenants.items():
            old = known.get(name)
            self._total(name).weight = tenant.weight
            if old is None:
                self._grow(name, {field: getattr(tenant, field) for field in _SUMMED}, is_news=is_news)
            elif _has_grown(tenant, old):
                # Rounding may make a sum of seconds a little smaller.
                grown = {field: max(getattr(tenant, field) - getattr(old, field), 0) for field in _SUMMED}
                self._grow(name, grown, is_news=is_news)

    def _grow(self, tenant: str, grown: dict[str, float], *, is_news: bool) -> None:
        total = self._total(tenant)
        for field, amount in grown.items():
            setattr(total, field, getattr(total, field) + amount)
        if is_news and any(grown.values()):
            self._history.grow(total.name, grown)

    def _total(self, tenant: str) -> pb.TenantStatus:
        name = tenant if tenant in self._totals or len(self._totals) < MAX_TENANTS else OTHERS
        return self._totals.setdefault(name, pb.TenantStatus(name=name))

    def _look(self, now_s: float) -> None:
        """Takes a sample if it is time, and forgets what is old."""
        self._history.look(now_s, self._taking(now_s))
        oldest_s = now_s - HISTORY_S
        self._replicas = {name: each for name, each in self._replicas.items() if each.heard_s >= oldest_s}
        while self._gone and self._gone[0].heard_s < oldest_s:
            self._gone.popleft()

    def _taking(self, now_s: float) -> list[pb.ReplicaStatus]:
        """Returns the replicas that take conversations."""
        heard = self._replicas.values()
        return [each.replica for each in heard if each.is_alive(now_s) and not each.is_leaving]

    def _tenants(self, totals: Iterable[pb.TenantStatus], now_s: float) -> list[pb.TenantStatus]:
        live = [heard for heard in self._replicas.values() if heard.is_alive(now_s)]
        tenants = []
        for total in totals:
            parts = [heard.tenants[total.name] for heard in live if total.name in heard.tenants]
            tenant = _of_late(parts)
            tenant.MergeFrom(total)
            tenants.append(tenant)
        return sorted(tenants, key=lambda each: (not each.num_conversations, each.name))

    def _conversations(self, only: str | None, now_s: float) -> list[pb.ConversationStatus]:
        found = []
        for heard in (*self._replicas.values(), *self._gone):
            for conversation in heard.message.conversations:
                if only in (None, conversation.tenant):
                    conversation.replica = heard.replica.address
                    ends = not heard.is_alive(now_s) and not conversation.closed_s
                    found.append(_closed(conversation, heard.heard_s) if ends else conversation)
        found.sort(key=lambda each: (each.closed_s > 0, -(each.closed_s or each.opened_s)))
        return found[:_MAX_CONVERSATIONS]

    def _told_refusals(self, only: str | None) -> list[pb.Refusal]:
        found = [refusal for refusal in self._refusals.newest_first() if only in (None, refusal.tenant)]
        for heard in (*self._replicas.values(), *self._gone):
            for refusal in heard.message.refusals:
                if only in (None, refusal.tenant):
                    refusal.replica = heard.replica.address
                    found.append(refusal)
        found.sort(key=lambda each: -each.time_s)
        return found[:_MAX_REFUSALS]

    def _history_of(self, only: str | None, then_s: float) -> list[pb.StatusSample]:
        if only is not None:
            return self._history.since(then_s, {only}, with_rest=False)
        most = sorted(self._totals.values(), key=lambda total: -total.num_tokens)[:_MAX_TENANTS_IN_HISTORY]
        return self._history.since(then_s, {total.name for total in most}, with_rest=True)


def _has_grown(tenant: pb.TenantStatus, old: pb.TenantStatus) -> bool:
    return (
        tenant.request_bytes != old.request_bytes
        or tenant.answer_bytes != old.answer_bytes
        or tenant.num_refusals != old.num_refusals
    )


def _closed(conversation: pb.ConversationStatus, heard_s: float) -> pb.ConversationStatus:
    closed = pb.ConversationStatus(closed_s=heard_s, why=_GONE)
    closed.MergeFrom(conversation)
    return closed


def _of_late(parts: Sequence[pb.TenantStatus]) -> pb.TenantStatus:
    """Returns how a tenant is now at all replicas; delays are the mean by turns, and the worst."""
    waited = [part for part in parts if part.queue_p99_ms]
    num_turns = sum(part.num_turns for part in waited)
    return pb.TenantStatus(
        num_conversations=sum(part.num_conversations for part in parts),
        queue_p50_ms=sum(part.queue_p50_ms * part.num_turns for part in waited) / max(num_turns, 1),
        queue_p99_ms=max((part.queue_p99_ms for part in waited), default=0.0),
    )
