"""What a replica counts: by conversation and tenant, and of its passes.

Each number has one thread that adds to it: the event loop's those of conversations, the compute thread's (on
CUDA the one that delivers) those of passes. So counting takes no lock, and whoever reads may see a turn half
counted. Tenants' numbers are added up when they are read. Knows neither Ray nor gRPC, and no torch.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from preceptor.names import OTHERS, UNKNOWN, UNNAMED
from preceptor.v1 import status_pb2 as pb
from services.teacher.counts import Counts, PassSignals, TenantSignals
from services.teacher.recent import Recent, RecentRefusals
from services.teacher.tally import Tally

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Mapping

    from preceptor.v1 import teacher_pb2 as teacher
    from services.teacher.spans import ReplicaSpans

__all__ = [
    "MAX_TENANTS",
    "ConversationSignals",
    "Signals",
]

MAX_TENANTS = 1000
_MAX_CLOSED = 50


class ConversationSignals:
    """Counts for one conversation; made by `Signals.conversation`.

    Attributes:
        conversation_id: its name in logs.
        peer: where it comes from.
        tenant: whose it is; empty as long as nobody has said so.
        counts: what was done in it.
        tally: what was asked for in it.
        spans: make those of its turns, if there are to be any.
    """

    def __init__(self, signals: Signals, conversation_id: str, peer: str) -> None:
        self.spans = None if signals.spans is None else signals.spans.conversation(conversation_id)
        self.conversation_id = conversation_id
        self.peer = peer
        self.tenant = ""
        self.counts = Counts()
        self.tally = Tally()
        self._signals = signals
        self._clock = signals.clock
        self._opened_s = signals.clock()
        self._delays: deque[tuple[float, float]] | None = None

    def named(self, tenant: str) -> None:
        """Learns whose it is, once; empty: nobody's who has a name."""
        self._delays = self._signals.delays_of(tenant or UNNAMED)
        self.tenant = tenant or UNNAMED

    def received(self, num_bytes: int) -> None:
        """Counts a frame that came."""
        self.tally.bytes += num_bytes
        self.counts.request_bytes += num_bytes

    def sent(self, num_bytes: int) -> None:
        """Counts a frame that went out."""
        self.counts.answer_bytes += num_bytes

    def answered(self, kind: str, num_tokens: int, queue_ms: float, share_ms: float) -> None:
        """Counts a turn.

        Args:
            kind: "exchange", "observe" or "backward".
            num_tokens: its rows x positions.
            queue_ms: milliseconds that it waited.
            share_ms: its part of the milliseconds of computation.
        """
        counts = self.counts
        counts.turns[kind] += 1
        counts.num_tokens += num_tokens
        counts.queue_s += queue_ms / 1000
        counts.compute_s += share_ms / 1000
        if self._delays is not None:
            self._delays.append((self._clock(), queue_ms / 1000))

    def abandoned(self, num_tokens: int, share_ms: float) -> None:
        """Counts what was computed for a student that had left: its tenant's, also once it has `ended`."""
        self.counts.num_tokens += num_tokens
        self.counts.compute_s += share_ms / 1000

    def refused(self, failed: teacher.Failed) -> None:
        """Counts what the student is told that something was refused or has failed."""
        self.counts.refusals[failed.reason] += 1
        self._signals.note_refusal(
            self.tenant, self.peer, failed.reason, failed.message, self.conversation_id
        )

    def to_proto(self) -> pb.ConversationStatus:
        """Returns how it goes."""
        counts = self.counts
        return pb.ConversationStatus(
            id=self.conversation_id,
            tenant=self.tenant,
            peer=self.peer,
            opened_s=self._opened_s,
            num_turns=counts.num_turns,
            num_tokens=counts.num_tokens,
            num_bytes=counts.request_bytes + counts.answer_bytes,
            queue_s=counts.queue_s,
            compute_s=counts.compute_s,
            num_refusals=counts.num_refusals,
        )


class Signals:
    """Counts for one replica.

    Args:
        clock: seconds of the epoch.

    Attributes:
        passes: what the teacher computed.
        began_s: when it began to count.
        clock: see above.
        spans: make those of turns that are traced, if there are to be any; closed with the engine.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.spans: ReplicaSpans | None = None
        self.passes = PassSignals()
        self.began_s = clock()
        self.clock = clock
        self._open: dict[str, ConversationSignals] = {}
        self._tenants: dict[str, TenantSignals] = {}
        self._closed: Recent[pb.ConversationStatus] = Recent(_MAX_CLOSED)
        self._refusals = RecentRefusals()
        self._lock = threading.Lock()

    def conversation(self, conversation_id: str, peer: str = "") -> ConversationSignals:
        """Returns what counts for a conversation that begins, until `ended`."""
        signals = ConversationSignals(self, conversation_id, peer)
        with self._lock:
            self._open[conversation_id] = signals
        return signals

    def ended(self, conversation: ConversationSignals, why: str) -> None:
        """Learns that a conversation is over, and why."""
        status = conversation.to_proto()
        status.closed_s, status.why = self.clock(), why
        with self._lock:
            if self._open.pop(conversation.conversation_id, None) is not None:
                counts = self._tenant(conversation.tenant).counts
                counts.add(conversation.counts)
                conversation.counts = counts  # what is computed for it from now on
                self._closed.put(status.id, status.tenant, status)

    def refused(self, tenant: str, peer: str, reason: teacher.Reason, message: str) -> None:
        """Counts a call that was not let in; see `access.refuse`."""
        with self._lock:
            self._tenant(tenant).counts.refusals[reason] += 1
        self.note_refusal(tenant, peer, reason, message)

    def note_refusal(
        self, tenant: str, peer: str, reason: teacher.Reason, message: str, conversation: str = ""
    ) -> None:
        """Keeps why something was refused, for those who look."""
        refusal = pb.Refusal(
            time_s=self.clock(),
            tenant=tenant,
            peer=peer,
            conversation=conversation,
            reason=reason,
            message=message,
            count=1,
        )
        with self._lock:
            self._refusals.add(refusal)

    @property
    def num_conversations(self) -> int:
        """Conversations that are open."""
        return len(self._open)

    def delays_of(self, tenant: str) -> deque[tuple[float, float]]:
        """Returns where the delays of a tenant's turns belong."""
        with self._lock:
            return self._tenant(tenant).delays

    def tenants(self) -> Mapping[str, TenantSignals]:
        """Returns what every tenant had until now, by name."""
        with self._lock:
            found = {name: TenantSignals(delays=each.delays) for name, each in self._tenants.items()}
            for name, each in found.items():
                each.counts.add(self._tenants[name].counts)
            for conversation in self._open.values():
                if conversation.tenant:  # else it may yet be anybody's
                    each = found[conversation.tenant if conversation.tenant in found else OTHERS]
                    each.counts.add(conversation.counts)
                    each.num_conversations += 1
        return found

    def conversations(self) -> list[pb.ConversationStatus]:
        """Returns those that are open and those that closed lately."""
        with self._lock:
            return [each.to_proto() for each in self._open.values()] + self._closed.newest_first()

    def refusals(self) -> list[pb.Refusal]:
        """Returns what was refused or failed lately, the newest first."""
        with self._lock:
            return self._refusals.newest_first()

    def _tenant(self, name: str) -> TenantSignals:
        name = name or UNKNOWN
        if name not in self._tenants and len(self._tenants) >= MAX_TENANTS:
            name = OTHERS
        return self._tenants.setdefault(name, TenantSignals())
