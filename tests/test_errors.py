"""One table of errors: what the service says, what a student gets, and that all of it can be pickled."""

from __future__ import annotations

import pickle

import pytest
import torch

import student_client
from preceptor import wire
from preceptor.v1 import teacher_pb2 as pb
from services.teacher import errors as service_errors
from services.teacher.errors import FieldError, OverloadedError, Status, TurnError, failure_of
from services.teacher.families.base import InputsError, UnsupportedError
from student_client import errors
from student_client.errors import error_of

RAISED = {
    pb.REASON_PROTOCOL_VIOLATION: errors.InvalidMessageError,
    pb.REASON_FIELD_INVALID: errors.InvalidMessageError,
    pb.REASON_TENSOR_INVALID: errors.InvalidMessageError,
    pb.REASON_SHAPE_MISMATCH: errors.InvalidMessageError,
    pb.REASON_DATA_TYPE_MISMATCH: errors.InvalidMessageError,
    pb.REASON_NOT_FINITE: errors.InvalidMessageError,
    pb.REASON_LIMIT_EXCEEDED: errors.InvalidMessageError,
    pb.REASON_TURN_CONFLICT: errors.TurnConflictError,
    pb.REASON_TURN_UNKNOWN: errors.TeacherError,
    pb.REASON_CODEC_UNKNOWN: errors.TeacherError,
    pb.REASON_CODEC_CONFLICT: errors.TurnConflictError,
    pb.REASON_UNSUPPORTED: errors.UnsupportedByTeacherError,
    pb.REASON_TEACHER_CHANGED: errors.TeacherChangedError,
    pb.REASON_OVERLOADED: errors.OverloadedError,
    pb.REASON_INTERNAL: errors.TeacherError,
    pb.REASON_DRAINING: errors.TeacherUnavailableError,
    pb.REASON_ACCESS_DENIED: errors.AccessError,
    pb.REASON_UNSPECIFIED: errors.TeacherError,
}
KINDS = [getattr(errors, name) for name in errors.__all__ if name != "error_of"]
TURN_ERRORS = [
    kind
    for name in service_errors.__all__
    if isinstance(kind := getattr(service_errors, name), type) and issubclass(kind, TurnError)
]


@pytest.mark.parametrize("reason", sorted(RAISED), ids=pb.Reason.Name)
def test_every_reason_becomes_an_exception_with_the_teachers_words(reason: pb.Reason) -> None:
    error = error_of(pb.Failed(reason=reason, message="x: got 1, expected 2", retry_after_ms=250))
    assert type(error) is RAISED[reason]
    assert str(error) == "x: got 1, expected 2"
    assert set(RAISED) == set(pb.Reason.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_can_be_pickled(kind: type[errors.TeacherError]) -> None:
    back = pickle.loads(pickle.dumps(kind("what happened")))  # noqa: S301 - our own bytes
    assert type(back) is kind
    assert str(back) == "what happened"
    assert issubclass(kind, errors.TeacherError)
    assert getattr(student_client, kind.__name__) is kind


def test_the_time_to_wait_survives_pickling() -> None:
    error = error_of(pb.Failed(reason=pb.REASON_OVERLOADED, message="full", retry_after_ms=250))
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert isinstance(back, errors.OverloadedError)
    assert (str(back), back.retry_after_s) == ("full", 0.25)


@pytest.mark.parametrize("kind", TURN_ERRORS)
def test_every_refusal_has_a_reason_and_a_status(kind: type[TurnError]) -> None:
    error = OverloadedError("why", 1.5) if kind is OverloadedError else kind("why")
    failed = failure_of(error, turn=3, codec_version=4)
    assert failed is not None
    assert (failed.turn, failed.codec_version, failed.message) == (3, 4, "why")
    if kind is not TurnError:
        assert failed.reason != pb.REASON_UNSPECIFIED
        assert failed.status_code != Status.INTERNAL
    assert failed.retry_after_ms == (1500 if kind is OverloadedError else 0)


def test_a_student_is_told_when_to_come_back_however_soon_that_is() -> None:
    failed = failure_of(OverloadedError("full", 0.0002))
    assert failed is not None
    assert failed.retry_after_ms == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (wire.TensorDecodeError("x"), pb.REASON_TENSOR_INVALID),
        (wire.ShapeMismatchError("x"), pb.REASON_SHAPE_MISMATCH),
        (wire.DataTypeMismatchError("x"), pb.REASON_DATA_TYPE_MISMATCH),
        (wire.NotFiniteError("x"), pb.REASON_NOT_FINITE),
        (InputsError("x"), pb.REASON_FIELD_INVALID),
        (UnsupportedError("x"), pb.REASON_UNSUPPORTED),
    ],
)
def test_errors_of_the_layers_below_have_a_reason(error: Exception, reason: pb.Reason) -> None:
    failed = failure_of(error, turn=3)
    assert failed is not None
    assert (failed.turn, failed.reason, failed.message) == (3, reason, "x")


def test_what_came_is_not_repeated_at_any_length() -> None:
    for error in (FieldError("x" * 3_000_000), InputsError("x" * 3_000_000)):
        failed = failure_of(error)
        assert failed is not None
        assert failed.message == "x" * 2000 + " ..."


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), torch.OutOfMemoryError("x")])
def test_anything_else_is_a_defect(error: Exception) -> None:
    assert failure_of(error) is None
