"""What a service tells of itself: all replicas together, the last minutes, and to each tenant its own part.

Replicas' counters begin anew when they do. So what is added up here is what grew since a replica's last word:
no sum falls when a replica goes. Knows neither Ray nor gRPC, and no torch: the directory's small process
imports it too.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import preceptor
from preceptor.v1 import status_pb2 as pb
from services.teacher.recent import RecentRefusals
from services.teacher.signals import MAX_TENANTS, OTHERS, UNKNOWN
from services.teacher.status_view import cut_to, history_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from preceptor.v1 import teacher_pb2 as teacher
    from services.teacher.gate import Pass

__all__ = ["HISTORY_S", "SAMPLE_PERIOD_S", "StatusBoard"]

SAMPLE_PERIOD_S = 2.0
HISTORY_S = 600.0

_MAX_SILENT_S = 3.0
_MAX_GONE = 32
_GONE = "its replica went away"
_SAMPLED = ("num_turns", "num_tokens", "queue_s", "compute_s", "num_refusals")
_SUMMED = (*_SAMPLED, "request_bytes", "answer_bytes")


@dataclass
class _Heard:
    """What a replica last said, and when."""

    message: pb.GetStatusResponse
    heard_s: float
    is_leaving: bool = False
    is_gone: bool = False

    @property
    def replica(self) -> pb.ReplicaStatus:
        return self.message.replicas[0]

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
        self._replicas: dict[str, _Heard] = {}
        self._gone: deque[_Heard] = deque(maxlen=_MAX_GONE)  # whose address another has now
        self._totals: dict[str, pb.TenantStatus] = {}
        self._refusals = RecentRefusals()
        self._sample: dict[str, pb.TenantSample] = {}
        self._samples: deque[tuple[float, bytes]] = deque()
        self._began_s = self._sampled_s = clock()

    def hear(self, message: pb.GetStatusResponse, *, is_leaving: bool = False) -> None:
        """Takes a replica's word of itself.

        Args:
            message: with the one replica, its tenants, conversations and refusals; it is kept.
            is_leaving: whether it takes no conversations any more.
        """
        now_s, (replica,) = self._clock(), message.replicas
        before = self._replicas.get(replica.address)
        if before is not None and replica.uptime_s < before.replica.uptime_s:
            before.is_gone = True
            self._gone.append(before)
            before = None
        # What a replica did before this board was there is no news.
        is_news = before is not None or message.time_s - replica.uptime_s >= self._began_s
        self._add(message.tenants, () if before is None else before.message.tenants, is_news=is_news)
        self._replicas[replica.address] = _Heard(message, now_s, is_leaving)
        self._look(now_s)

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
        live = [heard for heard in self._replicas.values() if heard.is_alive(now_s)]
        response = pb.GetStatusResponse(
            time_s=now_s,
            teacher=self._teacher,
            service_version=preceptor.__version__,
            tenant="" if shown is None else shown.tenant,
            sees_all=only is None,
            replicas=[heard.replica for heard in self._taking(now_s)],
            tenants=_with_now(self._totals.values(), live),
            conversations=self._conversations(now_s),
            refusals=[*self._refusals.newest_first(), *self._refusals_of_replicas()],
        )
        cut_to(response, only)
        recent = [sample for then_s, sample in self._samples if then_s > now_s - history_s]
        response.history.extend(history_of(recent, only))
        return response

    def _add(
        self, tenants: Iterable[pb.TenantStatus], before: Iterable[pb.TenantStatus], *, is_news: bool
    ) -> None:
        """Adds what a replica's tenants had since its last word."""
        known = {tenant.name: tenant for tenant in before}
        for tenant in tenants:
            old = known.get(tenant.name, pb.TenantStatus())
            grown = {name: getattr(tenant, name) - getattr(old, name) for name in _SUMMED}
            self._grow(tenant.name, grown, is_news=is_news)
            self._totals[self._known(tenant.name)].weight = tenant.weight

    def _grow(self, tenant: str, grown: dict[str, float], *, is_news: bool) -> None:
        name = self._known(tenant)
        total = self._totals.setdefault(name, pb.TenantStatus(name=name))
        grown = {field: amount for field, amount in grown.items() if amount > 0}
        for field, amount in grown.items():
            setattr(total, field, getattr(total, field) + amount)
        if is_news and grown:
            sample = self._sample.setdefault(name, pb.TenantSample(name=name))
            for field in _SAMPLED:
                setattr(sample, field, getattr(sample, field) + grown.get(field, 0))

    def _known(self, tenant: str) -> str:
        return tenant if tenant in self._totals or len(self._totals) < MAX_TENANTS else OTHERS

    def _look(self, now_s: float) -> None:
        """Takes a sample if it is time, and forgets what is old."""
        if now_s - self._sampled_s >= SAMPLE_PERIOD_S:
            live = [each.replica for each in self._taking(now_s)]
            sample = pb.StatusSample(
                time_s=now_s,
                tenants=self._sample.values(),
                queued_tokens=sum(replica.queued_tokens for replica in live),
                busy_share=sum(replica.busy_share for replica in live) / max(len(live), 1),
                num_replicas=len(live),
            )
            self._samples.append((now_s, sample.SerializeToString()))
            self._sample, self._sampled_s = {}, now_s
        oldest_s = now_s - HISTORY_S
        while self._samples and self._samples[0][0] < oldest_s:
            self._samples.popleft()
        self._replicas = {name: each for name, each in self._replicas.items() if each.heard_s >= oldest_s}
        while self._gone and self._gone[0].heard_s < oldest_s:
            self._gone.popleft()

    def _taking(self, now_s: float) -> list[_Heard]:
        """Returns the replicas that take conversations."""
        return [each for each in self._replicas.values() if each.is_alive(now_s) and not each.is_leaving]

    def _conversations(self, now_s: float) -> list[pb.ConversationStatus]:
        found = []
        for heard in (*self._replicas.values(), *self._gone):
            for conversation in heard.message.conversations:
                conversation.replica = heard.replica.address
                ends = not heard.is_alive(now_s) and not conversation.closed_s
                found.append(_closed(conversation, heard.heard_s) if ends else conversation)
        return found

    def _refusals_of_replicas(self) -> list[pb.Refusal]:
        found = []
        for heard in (*self._replicas.values(), *self._gone):
            for refusal in heard.message.refusals:
                refusal.replica = heard.replica.address
                found.append(refusal)
        return found


def _closed(conversation: pb.ConversationStatus, heard_s: float) -> pb.ConversationStatus:
    closed = pb.ConversationStatus(closed_s=heard_s, why=_GONE)
    closed.MergeFrom(conversation)
    return closed


def _with_now(totals: Iterable[pb.TenantStatus], live: Iterable[_Heard]) -> list[pb.TenantStatus]:
    """Returns what tenants had with how they are now; delays are the mean by turns, and the worst."""
    parts = defaultdict(list)
    for heard in live:
        for part in heard.message.tenants:
            parts[part.name].append(part)
    tenants = []
    for total in totals:
        own = parts[total.name]
        waited = [part for part in own if part.queue_p99_ms]
        num_turns = sum(part.num_turns for part in waited)
        tenant = pb.TenantStatus(
            num_conversations=sum(part.num_conversations for part in own),
            queue_p50_ms=sum(part.queue_p50_ms * part.num_turns for part in waited) / max(num_turns, 1),
            queue_p99_ms=max((part.queue_p99_ms for part in waited), default=0.0),
        )
        tenant.MergeFrom(total)
        tenants.append(tenant)
    return tenants
