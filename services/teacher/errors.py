"""What can be wrong with a student's frame, and how the protocol says it.

Errors:
    TurnError                      becomes a Failed frame; the conversation goes on
    ├── ProtocolError              the frame does not fit the state of the conversation
    ├── FieldError                 a field is out of its range
    ├── LimitError                 larger than the limits allow
    ├── TurnConflictError          the turn was used with other content
    ├── UnknownTurnError           the turn is not kept
    ├── UnknownCodecError          the codec version is not held
    ├── CodecConflictError         the codec version was used with other content
    ├── TeacherChangedError        not the teacher the student expects
    ├── DrainingError              this replica is going away
    └── OverloadedError            the queue is full; has retry_after_s

Errors of `preceptor.wire`, of the model families and of the gate are mapped by `failure_of`; any other
exception is a defect of the service. This module knows the gRPC status numbers but not gRPC.
"""

from __future__ import annotations

import logging
import math
from enum import IntEnum

from preceptor import wire
from preceptor.v1 import teacher_pb2 as pb
from services.teacher.families.base import InputsError, UnsupportedError
from services.teacher.gate import AccessDeniedError

__all__ = [
    "CodecConflictError",
    "DrainingError",
    "FieldError",
    "LimitError",
    "OverloadedError",
    "ProtocolError",
    "Status",
    "TeacherChangedError",
    "TurnConflictError",
    "TurnError",
    "UnknownCodecError",
    "UnknownTurnError",
    "failure_of",
]

logger = logging.getLogger(__name__)

# Messages repeat what came; a student that sends megabytes shall not be sent them back.
_MAX_MESSAGE_CHARACTERS = 2000


class Status(IntEnum):
    """The gRPC status codes in use."""

    INVALID_ARGUMENT = 3
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class TurnError(Exception):
    """A frame that can't be served; the message is for the student."""

    reason: pb.Reason = pb.REASON_UNSPECIFIED
    status: Status = Status.INTERNAL


class ProtocolError(TurnError):
    """The frame does not fit the state of the conversation."""

    reason = pb.REASON_PROTOCOL_VIOLATION
    status = Status.FAILED_PRECONDITION


class FieldError(TurnError):
    """A field is out of its range."""

    reason = pb.REASON_FIELD_INVALID
    status = Status.INVALID_ARGUMENT


class LimitError(TurnError):
    """Something is larger than the limits allow."""

    reason = pb.REASON_LIMIT_EXCEEDED
    status = Status.INVALID_ARGUMENT


class TurnConflictError(TurnError):
    """The turn was used with other content."""

    reason = pb.REASON_TURN_CONFLICT
    status = Status.ALREADY_EXISTS


class UnknownTurnError(TurnError):
    """The turn is not kept (any more)."""

    reason = pb.REASON_TURN_UNKNOWN
    status = Status.FAILED_PRECONDITION


class UnknownCodecError(TurnError):
    """The codec version is not held (any more)."""

    reason = pb.REASON_CODEC_UNKNOWN
    status = Status.FAILED_PRECONDITION


class CodecConflictError(TurnError):
    """The codec version was used with other content."""

    reason = pb.REASON_CODEC_CONFLICT
    status = Status.ALREADY_EXISTS


class TeacherChangedError(TurnError):
    """The teacher is not the one the student expects."""

    reason = pb.REASON_TEACHER_CHANGED
    status = Status.FAILED_PRECONDITION


class DrainingError(TurnError):
    """This replica is going away."""

    reason = pb.REASON_DRAINING
    status = Status.UNAVAILABLE


class OverloadedError(TurnError):
    """There is no room now; the student may come back after `retry_after_s` seconds."""

    reason = pb.REASON_OVERLOADED
    status = Status.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


# Errors of the layers below; the first class that fits counts.
_OTHERS: tuple[tuple[type[Exception], pb.Reason, Status], ...] = (
    (wire.TensorDecodeError, pb.REASON_TENSOR_INVALID, Status.INVALID_ARGUMENT),
    (wire.ShapeMismatchError, pb.REASON_SHAPE_MISMATCH, Status.INVALID_ARGUMENT),
    (wire.DataTypeMismatchError, pb.REASON_DATA_TYPE_MISMATCH, Status.INVALID_ARGUMENT),
    (wire.NotFiniteError, pb.REASON_NOT_FINITE, Status.INVALID_ARGUMENT),
    (InputsError, pb.REASON_FIELD_INVALID, Status.INVALID_ARGUMENT),
    (AccessDeniedError, pb.REASON_ACCESS_DENIED, Status.UNAUTHENTICATED),
    (UnsupportedError, pb.REASON_UNSUPPORTED, Status.UNIMPLEMENTED),
)


def failure_of(error: BaseException, *, turn: int = 0, codec_version: int = 0) -> pb.Failed | None:
    """Returns the Failed frame that tells a student of an error, or None for a defect of the service."""
    if isinstance(error, TurnError):
        retry_after_s = error.retry_after_s if isinstance(error, OverloadedError) else 0.0
        return pb.Failed(
            turn=turn,
            codec_version=codec_version,
            status_code=error.status,
            reason=error.reason,
            message=_message_of(error),
            retry_after_ms=math.ceil(retry_after_s * 1000),  # 0 would say nothing
        )
    for kind, reason, status in _OTHERS:
        if isinstance(error, kind):
            return pb.Failed(
                turn=turn,
                codec_version=codec_version,
                status_code=status,
                reason=reason,
                message=_message_of(error),
            )
    return None


def _message_of(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= _MAX_MESSAGE_CHARACTERS else f"{text[:_MAX_MESSAGE_CHARACTERS]} ..."


def failed_frame(
    error: BaseException, conversation_id: str, *, turn: int = 0, codec_version: int = 0
) -> pb.Failed:
    """Returns the Failed frame that tells a student of an error; one of a defect says only where to look."""
    failed = failure_of(error, turn=turn, codec_version=codec_version)
    if failed is not None:
        return failed
    where = {"conversation": conversation_id, "turn": turn}
    logger.error("conversation %s, turn %d failed", *where.values(), exc_info=error, extra=where)
    return pb.Failed(
        turn=turn,
        codec_version=codec_version,
        status_code=Status.INTERNAL,
        reason=pb.REASON_INTERNAL,
        message=f"the teacher failed; its log has the reason under conversation {conversation_id}",
    )
