"""Spans of what a teacher does for its students' turns, as parts of the students' own traces.

They are made once a turn is answered, from what its receipt says, so that turns nobody traces cost nothing:

    preceptor.turn              from its frame to its answer
      preceptor.queue           until it was taken up
      preceptor.batch           from then on, together with others
        preceptor.compute       what the pass that they shared took

They hold names and numbers, nothing of what was said. Knows neither gRPC nor Ray.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from preceptor.tracing import Tracing
from preceptor.v1 import teacher_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.teacher.config import ServiceConfig

__all__ = ["ConversationSpans", "ReplicaSpans", "parent_of", "spans_of"]

# A turn's spans cost some 60 microseconds; a teacher that has thousands of turns a second does not spend
# itself on traces that its students ask for.
_MAX_TURNS_PER_S = 50

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
_KIND_OF_ANSWER = {"reply": False, "observation": False, "gradients": True}  # whether it is to a Backward
_KIND_OF_REASON = {
    pb.REASON_CODEC_UNKNOWN: False,
    pb.REASON_TURN_CONFLICT: False,
    pb.REASON_TURN_UNKNOWN: True,
}


def parent_of(traceparent: str) -> SpanContext | None:
    """Returns the span that a frame names, or None if it names none that is kept; whatever came is fine."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    if not (trace_id and span_id and flags & TraceFlags.SAMPLED):
        return None
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class _Ration:
    """Says which traces are followed while there are too many: those that were are, as long as possible."""

    def __init__(self, max_turns_per_s: int, clock: Callable[[], float]) -> None:
        self._max_turns = max_turns_per_s
        self._clock = clock
        self._second = -1
        self._num_turns = 0
        self._before: set[int] = set()
        self._now: set[int] = set()

    def allows(self, trace_id: int) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._before = self._now if second == self._second + 1 else set()
            self._second, self._num_turns, self._now = second, 0, set()
        is_known = trace_id in self._now or trace_id in self._before
        if self._num_turns >= self._max_turns // (1 if is_known else 2):
            return False
        self._num_turns += 1
        self._now.add(trace_id)
        return True


class ReplicaSpans:
    """Makes the spans of one replica.

    Args:
        tracing: takes them.
        max_turns_per_s: turns that get spans; half of them are of traces that had none before.
        clock: seconds, monotonic.

    Attributes:
        replica: HOST:PORT, once that is known.
    """

    def __init__(
        self,
        tracing: Tracing,
        max_turns_per_s: int = _MAX_TURNS_PER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.replica = ""
        self._tracing = tracing
        self._ration = _Ration(max_turns_per_s, clock)

    def conversation(self, conversation_id: str) -> ConversationSpans:
        """Returns what makes the spans of a conversation."""
        return ConversationSpans(self, conversation_id)

    def parent_of(self, traceparent: str) -> SpanContext | None:
        """Returns whose part a turn's span is, or None if it gets none."""
        parent = parent_of(traceparent)
        return parent if parent is not None and self._ration.allows(parent.trace_id) else None

    def add_turn(self, turn: _Asked, facts: dict[str, str | int], answer: pb.ConverseResponse) -> None:
        """Adds the spans of a turn that is answered now."""
        start_ns, add = turn.start_ns, self._tracing.add
        end_ns = max(time.time_ns(), start_ns)
        failed = answer.failed if answer.HasField("failed") else None
        span = add(
            "preceptor.turn",
            turn.parent,
            (start_ns, end_ns),
            kind=SpanKind.SERVER,
            attributes={**facts, "preceptor.kind": turn.kind, "preceptor.replica": self.replica},
            error="" if failed is None else pb.Reason.Name(failed.reason),
        )
        if failed is not None:
            return
        receipt = getattr(answer, answer.WhichOneof("frame") or "").receipt
        taken_ns = min(start_ns + int(receipt.queue_ms * 1e6), end_ns)
        computed_ns = min(taken_ns + int(receipt.compute_ms * 1e6), end_ns)
        shared = {
            "preceptor.num_conversations": receipt.num_conversations,
            "preceptor.num_tenants": receipt.num_tenants,
        }
        add("preceptor.queue", span, (start_ns, taken_ns))
        batch = add("preceptor.batch", span, (taken_ns, end_ns), attributes=shared)
        add("preceptor.compute", batch, (taken_ns, computed_ns))

    def close(self) -> None:
        """Sends what there is, within a few seconds."""
        self._tracing.close()


@dataclass(frozen=True)
class _Asked:
    """A turn that is not answered yet, and whose part it is."""

    kind: str
    number: int
    parent: SpanContext
    start_ns: int

    @property
    def is_backward(self) -> bool:
        return self.kind == "backward"


class ConversationSpans:
    """Makes the spans of one conversation; see `ReplicaSpans.conversation`."""

    def __init__(self, replica: ReplicaSpans, conversation_id: str) -> None:
        self._replica = replica
        self._conversation_id = conversation_id
        self._asked: list[_Asked] = []  # the oldest first; a turn that is asked for again is there again

    def asked(self, frame: pb.ConverseRequest) -> None:
        """Learns of a frame before anything is made of it."""
        kind = frame.WhichOneof("frame")
        if kind in ("exchange", "observe", "backward") and frame.traceparent:
            parent = self._replica.parent_of(frame.traceparent)
            if parent is not None:
                self._asked.append(_Asked(kind, getattr(frame, kind).turn, parent, time.time_ns()))

    def answered(self, answer: pb.ConverseResponse) -> None:
        """Adds the spans of a turn that an answer ends."""
        if not self._asked:
            return
        turn = self._ended(answer)
        if turn is not None:
            self._asked.remove(turn)
            facts: dict[str, str | int] = {
                "preceptor.turn": turn.number,
                "preceptor.conversation": self._conversation_id,
            }
            self._replica.add_turn(turn, facts, answer)

    def _ended(self, answer: pb.ConverseResponse) -> _Asked | None:
        """Returns the oldest that an answer may be to; of conflicts the newest: older ones are served."""
        kind = answer.WhichOneof("frame") or ""
        is_conflict = False
        if kind == "failed":
            number, is_backward = answer.failed.turn, _KIND_OF_REASON.get(answer.failed.reason)
            is_conflict = answer.failed.reason == pb.REASON_TURN_CONFLICT
        elif kind in _KIND_OF_ANSWER and not (kind == "gradients" and not answer.gradients.complete):
            number, is_backward = getattr(answer, kind).turn, _KIND_OF_ANSWER[kind]
        else:
            return None
        found = (
            each
            for each in (reversed(self._asked) if is_conflict else self._asked)
            if each.number == number and is_backward in (None, each.is_backward)
        )
        return next(found, None)


def spans_of(config: ServiceConfig) -> ReplicaSpans | None:
    """Returns what makes a replica's spans, if the operator wants them.

    Raises:
        ValueError: what they need is not installed.
    """
    target = config.signals.traces
    if target is None:
        return None
    return ReplicaSpans(Tracing(target, "preceptor-teacher", {"preceptor.teacher": config.name}))
