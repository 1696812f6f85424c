"""How a call that is not let in is answered, in whichever server it came to."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from preceptor.v1.status_pb2 import GetStatusResponse
from preceptor.v1.teacher_pb2 import REASON_ACCESS_DENIED, REASON_OVERLOADED
from services.teacher.audit import RefusalsLog
from services.teacher.gate import AccessDeniedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from preceptor.v1.status_pb2 import GetStatusRequest
    from preceptor.v1.teacher_pb2 import Reason
    from services.teacher.gate import Gate, Pass

__all__ = [
    "RefusalsBook",
    "SupportsStatus",
    "admit",
    "answer_status",
    "deny",
    "is_blind",
    "is_denied",
    "peer_of",
    "refuse",
]

_refusals = RefusalsLog()

# Each takes milliseconds of the event loop that answers students, up to fifty with a long history.
_MAX_STATUSES_PER_S = 20


class _Frequency:
    """Says who asks too often.

    Args:
        max_per_s: times in a second.
        clock: seconds that only go forward.
    """

    def __init__(self, max_per_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_per_s = max_per_s
        self._clock = clock
        self._second = 0
        self._asked: Counter[str] = Counter()

    def allows(self, tenant: str) -> bool:
        """Counts that a tenant asks; returns whether it may."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._asked = second, Counter()
        self._asked[tenant] += 1
        return self._asked[tenant] <= self._max_per_s


_statuses = _Frequency(_MAX_STATUSES_PER_S)


class RefusalsBook(Protocol):
    """Counts refused calls: a replica's `Signals`, the directory's `StatusBoard`."""

    def refused(self, tenant: str, peer: str, reason: Reason, message: str) -> None:
        """Counts one."""
        ...


class SupportsStatus(RefusalsBook, Protocol):
    """Says how a service is, and counts those who may not know."""

    def answer(self, shown: Pass | None, history_s: int) -> GetStatusResponse:
        """See `StatusBoard.answer`."""
        ...


def peer_of(context: Any) -> str:
    """Returns where a call comes from, as its server says; empty without a context."""
    return "" if context is None else str(context.peer())


async def admit(gate: Gate, context: Any) -> Pass:
    """Returns the pass of a caller, by the file of tenants as it is now.

    Raises:
        AccessDeniedError: as in `Gate.admit`.
    """
    await gate.look()
    return gate.admit(() if context is None else context.invocation_metadata() or ())


async def is_denied(gate: Gate | None, context: Any, book: RefusalsBook) -> bool:
    """Whether a call that has one answer is not let in; its status then says so."""
    if gate is None:
        return False
    try:
        await admit(gate, context)
    except AccessDeniedError as error:
        deny(context, error, book)
        return True
    return False


async def answer_status(
    request: GetStatusRequest, gate: Gate | None, context: Any, book: SupportsStatus
) -> GetStatusResponse:
    """Answers GetStatus with what the caller may see; a tenant that asks without end is refused."""
    try:
        shown = None if gate is None else await admit(gate, context)
    except AccessDeniedError as error:
        deny(context, error, book)
        return GetStatusResponse()
    if shown is not None and not _statuses.allows(shown.tenant):
        often = ValueError(f"status: {shown.tenant} asked more than {_MAX_STATUSES_PER_S} times in a second")
        refuse(shown.tenant, context, often, REASON_OVERLOADED, book)
        if context is not None:
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details(str(often))
        return GetStatusResponse()
    return book.answer(shown, request.history_s)


async def is_blind(gate: Gate | None) -> bool:
    """Whether nobody is let in because the file of tenants can't be read, as it is now."""
    if gate is None:
        return False
    await gate.look()
    return gate.is_blind


def refuse(tenant: str, context: Any, error: Exception, reason: Reason, book: RefusalsBook) -> None:
    """Writes down that a call is refused.

    Args:
        tenant: whose it is; empty: nobody knows.
        context: of the call.
        error: what it is told.
        reason: the same for programs.
        book: counts it.
    """
    _refusals.refused(tenant, peer_of(context), str(error))
    book.refused(tenant, peer_of(context), reason, str(error))


def deny(context: Any, error: AccessDeniedError, book: RefusalsBook) -> None:
    """Has a call end with the status that says so, and writes it down."""
    refuse(error.tenant, context, error, REASON_ACCESS_DENIED, book)
    if context is not None:
        context.set_code(grpc.StatusCode.UNAUTHENTICATED)
        context.set_details(str(error))
