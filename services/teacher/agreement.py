"""What a conversation is opened with: the agreement of its two ends, and the codec that fits it.

Every refusal names the field, what came and what was expected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError

from preceptor import wire
from preceptor.codec import CodecSpec, TeacherCodec
from preceptor.compression import Compression
from preceptor.terms import READINGS, Reading
from preceptor.v1 import teacher_pb2 as pb
from services.teacher.errors import FieldError, LimitError, TeacherChangedError
from services.teacher.work import Speaker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from preceptor.v1 import tensor_pb2 as tensors
    from services.teacher.config import LimitsConfig
    from services.teacher.families.base import Teacher

__all__ = ["Agreement", "agree", "build_codec", "check_limit", "names_of"]

_MAX_TENANT_CHARACTERS = 128
_UNNAMED = "conversation:"  # a conversation without a tenant is a tenant of its own


@dataclass(frozen=True)
class Agreement:
    """What the two ends of a conversation agreed on when it was opened."""

    spec: CodecSpec
    reading: Reading
    split_layer: int
    compression: Compression
    codec_shapes: Mapping[str, torch.Size]
    speaker: Speaker


def agree(
    frame: pb.Open,
    conversation_id: str,
    teacher: Teacher,
    limits: LimitsConfig,
    default_split_layer: int,
    tenant: str | None = None,
) -> Agreement:
    """Checks an Open.

    Args:
        frame: what the student asks for.
        conversation_id: its conversation's.
        teacher: whom it asks.
        limits: what is accepted.
        default_split_layer: where it names none.
        tenant: whose it is, where that is known; None: whose it says it is.

    Raises:
        FieldError, LimitError, TeacherChangedError: naming the field.
    """
    facts = teacher.facts
    if frame.expected_fingerprint not in ("", facts.fingerprint):
        raise TeacherChangedError(
            f"expected_fingerprint: got {frame.expected_fingerprint}, this teacher's is {facts.fingerprint}"
        )
    spec, compression = _parse(frame)
    if frame.reading not in READINGS:
        raise FieldError(f"reading: got {frame.reading}, expected one of {names_of(pb.Reading, READINGS)}")
    check_limit("codec.message_dim", spec.message_dim, limits.max_message_dim)
    check_limit("codec.message_len", spec.message_len or 0, limits.max_message_len)
    check_limit("tenant characters", len(frame.tenant), _MAX_TENANT_CHARACTERS)
    if frame.tenant.startswith(_UNNAMED):
        raise FieldError(f"tenant: got {frame.tenant!r}, expected a name that does not start with {_UNNAMED}")
    shapes = TeacherCodec.shapes(spec, facts.hidden_size)
    check_limit(
        "codec parameters", sum(shape.numel() for shape in shapes.values()), limits.max_codec_parameters
    )
    split_layer = frame.split_layer if frame.HasField("split_layer") else default_split_layer
    if split_layer > facts.num_layers:
        raise FieldError(f"split_layer: got {split_layer}, expected 0 to {facts.num_layers}")
    return Agreement(
        spec=spec,
        reading=READINGS[frame.reading],
        split_layer=split_layer,
        compression=compression,
        codec_shapes=shapes,
        speaker=Speaker(
            tenant=tenant if tenant is not None else frame.tenant or f"{_UNNAMED}{conversation_id}",
            conversation=conversation_id,
            deterministic=frame.deterministic,
        ),
    )


def _parse(frame: pb.Open) -> tuple[CodecSpec, Compression]:
    try:
        return CodecSpec.from_proto(frame.codec), Compression.from_proto(frame.compression)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["codec", *map(str, first["loc"])])
        raise FieldError(f"{where}: got {first['input']!r}: {first['msg']}") from None
    except ValueError as error:
        raise FieldError(str(error)) from None


def build_codec(
    tensors: Sequence[tensors.NamedTensor], agreement: Agreement, teacher: Teacher
) -> TeacherCodec:
    """Checks the tensors of a codec version and builds its module, in float32, on the teacher's device.

    Raises:
        FieldError: a name is missing or unknown.
        wire.WireError: a tensor is wrong.
    """
    got = {message.name for message in tensors}
    if len(got) != len(tensors) or got != set(agreement.codec_shapes):
        raise FieldError(
            f"codec tensors: got {sorted(got)}, expected {sorted(agreement.codec_shapes)}, each once"
        )
    state = {
        message.name: wire.decode(
            message.tensor,
            field=f"codec[{message.name}]",
            dtypes=wire.FLOAT_TYPES,
            shape=agreement.codec_shapes[message.name],
            finite=True,
        ).to(device=teacher.device, dtype=torch.float32)
        for message in tensors
    }
    with torch.device("meta"):
        codec = TeacherCodec(agreement.spec, teacher.facts.hidden_size)
    codec.load_state_dict(state, assign=True)
    return codec


def check_limit(field: str, got: int, limit: int, minimum: int = 0) -> None:
    """Checks a size.

    Raises:
        FieldError: it is below `minimum`.
        LimitError: it is above `limit`.
    """
    if got < minimum:
        raise FieldError(f"{field}: got {got}, expected at least {minimum}")
    if got > limit:
        raise LimitError(f"{field}: got {got}, expected at most {limit}")


def names_of(enum: type, values: Iterable[int]) -> str:
    """Returns the names of an enumeration's values, for errors."""
    return ", ".join(enum.Name(value) for value in values)  # type: ignore[attr-defined]
