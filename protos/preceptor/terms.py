"""The protocol's enumerations as both sides use them in Python and in config files."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from preceptor.v1 import teacher_pb2 as pb

__all__ = [
    "OBSERVATION_KINDS",
    "OBSERVATION_KIND_NUMBERS",
    "READINGS",
    "READING_NUMBERS",
    "ObservationKind",
    "Reading",
    "parse",
]

EnumT = TypeVar("EnumT", bound=StrEnum)


def parse(kind: type[EnumT], value: str, field: str) -> EnumT:
    """Returns the member of an enumeration that has a value.

    Raises:
        ValueError: none has; the message names the field.
    """
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{field}: got {value!r}, expected one of {', '.join(kind)}") from None


class Reading(StrEnum):
    """How the teacher takes a message in.

    `replace`: its upper layers see the decoded message only. `beside`: the decoded message joins the
    teacher's own lower states as extra positions, and the reply is read there. `add`: the decoded message is
    added to the teacher's own lower states.
    """

    REPLACE = "replace"
    BESIDE = "beside"
    ADD = "add"


class ObservationKind(StrEnum):
    """What a teacher can say of an input; see `ObservationKind` of the protocol for shapes."""

    LOWER_MESSAGE = "lower_message"
    UPPER_MESSAGE = "upper_message"
    STATE_CONSISTENCY = "state_consistency"
    LOWER_STATE = "lower_state"
    UPPER_STATE = "upper_state"
    POOLED_STATE = "pooled_state"
    LOGITS = "logits"

    @property
    def needs_codec(self) -> bool:
        """Whether the value depends on the codec and is differentiable in it."""
        return self in (
            ObservationKind.LOWER_MESSAGE,
            ObservationKind.UPPER_MESSAGE,
            ObservationKind.STATE_CONSISTENCY,
        )


READINGS: dict[pb.Reading, Reading] = {
    pb.READING_REPLACE: Reading.REPLACE,
    pb.READING_BESIDE: Reading.BESIDE,
    pb.READING_ADD: Reading.ADD,
}
READING_NUMBERS = {reading: number for number, reading in READINGS.items()}

OBSERVATION_KINDS: dict[pb.ObservationKind, ObservationKind] = {
    pb.OBSERVATION_KIND_LOWER_MESSAGE: ObservationKind.LOWER_MESSAGE,
    pb.OBSERVATION_KIND_UPPER_MESSAGE: ObservationKind.UPPER_MESSAGE,
    pb.OBSERVATION_KIND_STATE_CONSISTENCY: ObservationKind.STATE_CONSISTENCY,
    pb.OBSERVATION_KIND_LOWER_STATE: ObservationKind.LOWER_STATE,
    pb.OBSERVATION_KIND_UPPER_STATE: ObservationKind.UPPER_STATE,
    pb.OBSERVATION_KIND_POOLED_STATE: ObservationKind.POOLED_STATE,
    pb.OBSERVATION_KIND_LOGITS: ObservationKind.LOGITS,
}
OBSERVATION_KIND_NUMBERS = {kind: number for number, kind in OBSERVATION_KINDS.items()}
