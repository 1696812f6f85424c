"""How a call that is not let in is answered, in whichever server it came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from services.teacher.audit import StrangersLog
from services.teacher.gate import AccessDeniedError

if TYPE_CHECKING:
    from services.teacher.gate import Gate, Pass

__all__ = ["admit", "deny", "is_denied", "peer_of"]

_strangers = StrangersLog()


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


async def is_denied(gate: Gate | None, context: Any) -> bool:
    """Whether a call that has one answer is not let in; its status then says so."""
    if gate is None:
        return False
    try:
        await admit(gate, context)
    except AccessDeniedError as error:
        deny(context, error)
        return True
    return False


def deny(context: Any, error: AccessDeniedError) -> None:
    """Has a call end with the status that says so, and writes it down."""
    _strangers.refused(peer_of(context), str(error))
    if context is not None:
        context.set_code(grpc.StatusCode.UNAUTHENTICATED)
        context.set_details(str(error))
