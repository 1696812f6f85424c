"""How a call that is not let in is answered, in whichever server it came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from services.teacher.audit import audit
from services.teacher.gate import AccessDeniedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.teacher.gate import Gate

__all__ = ["deny", "is_denied", "metadata_of", "peer_of"]


def metadata_of(context: Any) -> Iterable[tuple[str, str | bytes]]:
    """Returns the metadata of a call; none without a context."""
    return () if context is None else context.invocation_metadata() or ()


def peer_of(context: Any) -> str:
    """Returns where a call comes from, as its server says; empty without a context."""
    return "" if context is None else str(context.peer())


def is_denied(gate: Gate | None, context: Any) -> bool:
    """Whether a call that has one answer is not let in; its status then says so."""
    if gate is None:
        return False
    try:
        gate.admit(metadata_of(context))
    except AccessDeniedError as error:
        deny(context, error)
        return True
    return False


def deny(context: Any, error: AccessDeniedError) -> None:
    """Has a call end with the status that says so, and writes it down."""
    audit("refused", tenant="", peer=peer_of(context), why=str(error))
    if context is not None:
        context.set_code(grpc.StatusCode.UNAUTHENTICATED)
        context.set_details(str(error))
