"""What can go wrong when a student talks to a teacher.

Errors:
    TeacherError                     every error of this package; also a defect of the service
    ├── InvalidMessageError          the teacher refused what was sent; never retried
    │   └── FrameTooLargeError       a frame is larger than the teacher's limit
    ├── UnsupportedByTeacherError    the teacher can't do this; never retried
    ├── TurnConflictError            a turn or codec number was used with other content; never retried
    ├── TeacherChangedError          another teacher answers than the one talked to so far; never retried
    ├── AccessError                  no permission; never retried
    ├── OverloadedError              still no room after all retries; has retry_after_s
    ├── TeacherUnavailableError      no replica could be reached in time, after all retries
    └── DeadlineExceededError        no answer in time, after all retries

All of them can be pickled, so they reach the driver of a distributed run unharmed.
"""

from __future__ import annotations

from preceptor.v1 import teacher_pb2 as pb

__all__ = [
    "AccessError",
    "DeadlineExceededError",
    "FrameTooLargeError",
    "InvalidMessageError",
    "OverloadedError",
    "TeacherChangedError",
    "TeacherError",
    "TeacherUnavailableError",
    "TurnConflictError",
    "UnsupportedByTeacherError",
    "error_of",
]


class TeacherError(Exception):
    """An error in talking to a teacher.

    Attributes:
        retry_after_s: when the teacher asked to be asked again, seconds; 0: it did not.
    """

    retry_after_s = 0.0


class InvalidMessageError(TeacherError):
    """The teacher refused what was sent; the message names the field, what came, what was expected."""


class FrameTooLargeError(InvalidMessageError):
    """A frame is larger than the teacher's limit."""


class UnsupportedByTeacherError(TeacherError):
    """The teacher can't do what was asked."""


class TurnConflictError(TeacherError):
    """A turn or codec number was used with other content."""


class TeacherChangedError(TeacherError):
    """Another teacher answers than the one talked to so far."""


class AccessError(TeacherError):
    """The teacher does not know the student, or does not allow this."""


class OverloadedError(TeacherError):
    """The teacher had no room, also after all retries."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class TeacherUnavailableError(TeacherError):
    """No replica could be reached in time."""


class DeadlineExceededError(TeacherError):
    """No answer came in time."""


_KINDS: dict[pb.Reason, type[TeacherError]] = {
    pb.REASON_PROTOCOL_VIOLATION: InvalidMessageError,
    pb.REASON_FIELD_INVALID: InvalidMessageError,
    pb.REASON_TENSOR_INVALID: InvalidMessageError,
    pb.REASON_SHAPE_MISMATCH: InvalidMessageError,
    pb.REASON_DATA_TYPE_MISMATCH: InvalidMessageError,
    pb.REASON_NOT_FINITE: InvalidMessageError,
    pb.REASON_LIMIT_EXCEEDED: InvalidMessageError,
    pb.REASON_TURN_CONFLICT: TurnConflictError,
    pb.REASON_CODEC_CONFLICT: TurnConflictError,
    pb.REASON_UNSUPPORTED: UnsupportedByTeacherError,
    pb.REASON_TEACHER_CHANGED: TeacherChangedError,
    pb.REASON_DRAINING: TeacherUnavailableError,
    pb.REASON_ACCESS_DENIED: AccessError,
}


def error_of(failed: pb.Failed) -> TeacherError:
    """Returns the exception for a Failed frame."""
    if failed.reason == pb.REASON_OVERLOADED:
        return OverloadedError(failed.message, failed.retry_after_ms / 1000.0)
    return _KINDS.get(failed.reason, TeacherError)(failed.message)
