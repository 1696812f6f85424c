"""One stream as the operator sees it: whose it is, how long it may last, and what is written down of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from preceptor.names import UNKNOWN
from preceptor.v1 import teacher_pb2 as pb
from services.teacher.audit import audit
from services.teacher.errors import ProtocolError, failure_of
from services.teacher.gate import AccessDeniedError

if TYPE_CHECKING:
    import asyncio

    from services.teacher.conversation import Conversation
    from services.teacher.gate import Gate, Pass
    from services.teacher.limits import LimitsConfig
    from services.teacher.outbox import Outbox

__all__ = ["End", "Visit", "notice_of"]


class End(StrEnum):
    """Why a conversation ended."""

    STUDENT = "the student left"
    DENIED = "the token was revoked or has expired"
    SILENT = "nothing was opened in time"
    DEAF = "its answers were not read"
    IDLE = "nothing was asked for a while"
    LONG = "it lasted as long as one may"
    DRAINED = "the replica goes away"


@dataclass
class Visit:
    """A stream that was let in.

    Attributes:
        conversation: what it carries.
        outbox: its answers.
        shown: what it was let in with; None: nothing is asked for here.
        peer: where it comes from.
        now_s: when it came, on the loop's clock.
        end: why it ended, or is about to.
        handler: the task that answers it.
        cut: what ends that task if its student reads nothing any more.
        is_moving: whether the student was asked to open its next turns elsewhere.
    """

    conversation: Conversation
    outbox: Outbox
    shown: Pass | None
    peer: str
    now_s: float
    end: End = End.STUDENT
    handler: asyncio.Task[object] | None = None
    cut: asyncio.TimerHandle | None = None
    is_moving: bool = False
    _heard_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._heard_s = self.now_s
        audit("opened", **self._who())

    def heard(self, now_s: float) -> None:
        """Notes that the student sent something."""
        self._heard_s = now_s

    def must_end(self, gate: Gate | None, limits: LimitsConfig, now_s: float) -> bool:
        """Whether the stream has to end now; `end` then says why."""
        lasted_s, idle_s = now_s - self.now_s, now_s - self._heard_s
        if gate is not None and self.shown is not None and not gate.allows(self.shown):
            self.end = End.DENIED
        elif not self.conversation.is_open and lasted_s > limits.max_open_s:
            self.end = End.SILENT
        elif self.outbox.unread_s(now_s) > limits.max_unread_s:
            self.end = End.DEAF
        elif limits.max_conversation_s is not None and lasted_s > limits.max_conversation_s:
            self.end = End.LONG
        elif idle_s > limits.max_idle_s and not self.conversation.is_busy:
            self.end = End.IDLE
        else:
            return False
        return True

    def tell(self, notice: pb.ConverseResponse) -> None:
        """Sends the student something that is no answer to a turn."""
        if notice.HasField("failed"):
            self.conversation.signals.refused(notice.failed)
        self.outbox.put(notice)

    def move(self) -> None:
        """Asks the student to open its next turns elsewhere; those it has begun are answered here."""
        self.is_moving = True
        self.outbox.put(pb.ConverseResponse(draining=pb.Draining(closes_in_ms=0)))

    def close(self, now_s: float) -> None:
        """Drops what is kept for the student, and writes down that it is over."""
        self.conversation.give_up()
        if self.cut is not None:
            self.cut.cancel()
        tally = self.conversation.signals.tally
        facts = {"why": self.end.value, "seconds": round(now_s - self.now_s, 3)}
        audit("closed", **self._who(), **facts, turns=tally.turns, tokens=tally.tokens, bytes=tally.bytes)

    def _who(self) -> dict[str, str]:
        conversation = self.conversation
        tenant = conversation.signals.tenant or UNKNOWN
        return {"conversation": conversation.conversation_id, "tenant": tenant, "peer": self.peer}


def notice_of(end: End) -> pb.ConverseResponse:
    """Returns what a student is told at the end: that it is not let in, or to open another conversation."""
    error: Exception
    if end is End.DENIED:
        error = AccessDeniedError(f"authorization: {end.value}")
    elif end is End.SILENT:
        error = ProtocolError(f"open: got none, expected one at once: {end.value}")
    else:
        return pb.ConverseResponse(draining=pb.Draining(closes_in_ms=0))
    return pb.ConverseResponse(failed=failure_of(error))
