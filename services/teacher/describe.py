"""The teacher's facts and the operator's limits as protocol messages, and the names both sides use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import preceptor
from preceptor import wire
from preceptor.terms import OBSERVATION_KINDS, READINGS, ObservationKind
from preceptor.v1 import teacher_pb2 as pb
from services.teacher.families.base import Modality

if TYPE_CHECKING:
    from services.teacher.config import LimitsConfig
    from services.teacher.families.base import TeacherFacts

__all__ = ["describe_limits", "describe_teacher"]

_MODALITIES = {Modality.TEXT: pb.MODALITY_TEXT, Modality.TENSORS: pb.MODALITY_TENSORS}


def describe_teacher(facts: TeacherFacts, default_split_layer: int) -> pb.TeacherDescription:
    """Returns a teacher's facts as a protocol message."""
    return pb.TeacherDescription(
        name=facts.name,
        family=facts.family,
        num_layers=facts.num_layers,
        hidden_size=facts.hidden_size,
        modality=_MODALITIES[facts.modality],
        talking_layers=range(facts.num_layers + 1),
        default_split_layer=default_split_layer,
        data_type=wire.from_torch_dtype(facts.dtype),
        num_parameters=facts.num_parameters,
        fingerprint=facts.fingerprint,
        readings=READINGS,
        observations=[
            number
            for number, kind in OBSERVATION_KINDS.items()
            if kind is not ObservationKind.LOGITS or facts.has_head
        ],
        inputs=[
            pb.InputDescription(
                name=field.name,
                data_type=wire.from_torch_dtype(field.dtype),
                shape=field.shape,
                required=field.required,
            )
            for field in facts.inputs
        ],
        service_version=preceptor.__version__,
    )


def describe_limits(limits: LimitsConfig) -> pb.Limits:
    """Returns the limits a student must keep as a protocol message."""
    return pb.Limits(
        max_frame_bytes=limits.max_frame_bytes,
        max_batch_size=limits.max_batch_size,
        max_message_len=limits.max_message_len,
        max_message_dim=limits.max_message_dim,
        max_input_len=limits.max_input_len,
        max_turns_in_flight=limits.max_turns_in_flight,
        max_retained_turns=limits.max_retained_turns,
        max_codec_parameters=limits.max_codec_parameters,
    )
