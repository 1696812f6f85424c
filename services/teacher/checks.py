"""Turns a student's frames into checked work: all that is decided about wire data is decided here.

Nothing reaches the compute thread that could fail there for a reason the student can help. Every refusal
names the field, what came and what was expected. Knows the protocol and the teacher's facts, but neither
conversations nor gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from preceptor import wire
from preceptor.terms import OBSERVATION_KINDS, ObservationKind, Reading
from preceptor.v1 import teacher_pb2 as pb
from services.teacher.agreement import check_limit, names_of
from services.teacher.errors import FieldError
from services.teacher.families.base import UnsupportedError
from services.teacher.work import ExchangeTurn, ObserveTurn, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from preceptor.codec import TeacherCodec
    from preceptor.v1 import tensor_pb2 as tensors
    from services.teacher.agreement import Agreement
    from services.teacher.config import LimitsConfig
    from services.teacher.families.base import Teacher

__all__ = [
    "check_backward",
    "check_exchange",
    "check_observe",
    "check_tokens",
    "check_turn",
    "requested_kinds",
]

# Far more than any teacher reads: a few bytes on the wire are a tensor, which takes hundreds in memory.
_MAX_INPUT_TENSORS = 1024


def check_turn(
    frame: pb.Exchange | pb.Observe,
    codec_of: Callable[[int], TeacherCodec],
    agreement: Agreement,
    teacher: Teacher,
    limits: LimitsConfig,
) -> Turn:
    """Returns the turn of a frame, ready to be computed.

    Args:
        frame: an Exchange or Observe.
        codec_of: returns a version of the conversation's codec.
        agreement: of its conversation.
        teacher: the frozen teacher.
        limits: what is accepted.

    Raises:
        TurnError: it can't be served.
    """
    turn: Turn
    if isinstance(frame, pb.Exchange):
        turn = check_exchange(frame, codec_of(frame.codec_version), agreement, teacher, limits)
    else:
        needs_codec = not frame.ahead and any(kind.needs_codec for kind in requested_kinds(frame))
        codec = codec_of(frame.codec_version) if needs_codec else None
        turn = check_observe(frame, codec, agreement, teacher, limits)
    check_tokens(turn, limits)
    return turn


def check_exchange(
    frame: pb.Exchange, codec: TeacherCodec, agreement: Agreement, teacher: Teacher, limits: LimitsConfig
) -> ExchangeTurn:
    """Checks an Exchange.

    Raises:
        FieldError, LimitError: a field is out of its range.
        wire.WireError: a tensor is wrong.
        InputsError: the inputs are not what the teacher reads.
    """
    spec = agreement.spec
    message = wire.decode(
        frame.message,
        field="message",
        dtypes=wire.FLOAT_TYPES,
        shape=(None, spec.message_len, spec.message_dim),
        finite=True,
    )
    batch, length, _ = message.shape
    check_limit("message rows", batch, limits.max_batch_size, minimum=1)
    check_limit("message positions", length, limits.max_message_len, minimum=1)
    if frame.HasField("mask"):
        mask = _decode_mask(frame.mask, "mask", (batch, length))
    else:
        mask = torch.ones(batch, length, dtype=torch.bool)
    inputs = None
    if agreement.reading is not Reading.REPLACE:
        inputs = _prepare(frame.inputs, teacher, limits)
        _check_rows(inputs, batch, "message")
    return ExchangeTurn(
        codec=codec,
        codec_version=frame.codec_version,
        message=message,
        mask=mask,
        reading=agreement.reading,
        split_layer=agreement.split_layer,
        inputs=inputs,
        wants_gradient=frame.wants_gradient,
        speaker=agreement.speaker,
    )


def check_observe(
    frame: pb.Observe,
    codec: TeacherCodec | None,
    agreement: Agreement,
    teacher: Teacher,
    limits: LimitsConfig,
) -> ObserveTurn:
    """Checks an Observe; `codec` is the version it names, or None if no kind needs one.

    Raises:
        FieldError, LimitError: a field is out of its range.
        wire.WireError: a tensor is wrong.
        InputsError: the inputs are not what the teacher reads.
    """
    inputs = _prepare(frame.inputs, teacher, limits)
    kinds = requested_kinds(frame)
    if ObservationKind.LOGITS in kinds and not teacher.facts.has_head:
        raise UnsupportedError("logits: got a teacher without a head, expected one with a head")
    rows = next(iter(inputs.values())).shape[0]
    message_mask = None
    if codec is not None and agreement.spec.message_len is not None:
        message_mask = torch.ones(rows, agreement.spec.message_len, dtype=torch.bool)
    elif codec is not None and frame.HasField("mask"):
        message_mask = _decode_mask(frame.mask, "mask", (rows, None))
        check_limit("mask positions", message_mask.shape[1], limits.max_message_len)
    return ObserveTurn(
        codec=codec,
        codec_version=0 if codec is None else frame.codec_version,
        inputs=inputs,
        kinds=kinds,
        split_layer=agreement.split_layer,
        message_mask=message_mask,
        wants_gradient=frame.wants_gradient and codec is not None,
        speaker=agreement.speaker,
        ahead=frame.ahead,
        reads_lower=frame.ahead and agreement.reading is not Reading.REPLACE,
    )


def requested_kinds(frame: pb.Observe) -> frozenset[ObservationKind]:
    """Returns what an Observe asks for.

    Raises:
        FieldError: nothing, or a kind that is not known.
    """
    if len(frame.kinds) > len(OBSERVATION_KINDS):
        raise FieldError(
            f"kinds: got {len(frame.kinds)}, expected each of {len(OBSERVATION_KINDS)} at most once"
        )
    for kind in frame.kinds:
        if kind not in OBSERVATION_KINDS:
            raise FieldError(
                f"kinds: got {kind}, expected some of {names_of(pb.ObservationKind, OBSERVATION_KINDS)}"
            )
    if not frame.kinds:
        raise FieldError(
            f"kinds: got none, expected some of {names_of(pb.ObservationKind, OBSERVATION_KINDS)}"
        )
    return frozenset(OBSERVATION_KINDS[kind] for kind in frame.kinds)


def check_backward(frame: pb.Backward, turn: Turn, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Checks the gradients of a Backward against the shapes of what its turn returned.

    Raises:
        FieldError: the turn takes no gradients, or one has an unknown name.
        wire.WireError: a tensor is wrong.
    """
    if not turn.wants_gradient:
        raise FieldError("turn: got a Backward of a turn with wants_gradient false, expected it true")
    gradients: dict[str, Tensor] = {}
    for message in frame.gradients:
        if message.name not in shapes or message.name in gradients:
            raise FieldError(
                f"gradients: got {message.name!r}, expected each of {sorted(shapes)} at most once"
            )
        gradients[message.name] = wire.decode(
            message.tensor,
            field=f"gradients[{message.name}]",
            dtypes=wire.FLOAT_TYPES,
            shape=shapes[message.name],
            finite=True,
        )
    if not gradients:
        raise FieldError(f"gradients: got none, expected some of {sorted(shapes)}")
    return gradients


def check_tokens(turn: Turn, limits: LimitsConfig) -> None:
    """Checks what a turn would compute.

    Raises:
        LimitError: more rows x positions than one turn may have.
    """
    check_limit("rows x positions", turn.num_tokens, limits.max_turn_tokens)


def _prepare(frame: pb.Inputs, teacher: Teacher, limits: LimitsConfig) -> dict[str, Tensor]:
    if bool(frame.texts) == bool(frame.tensors):
        got = "both" if frame.texts else "neither"
        raise FieldError(f"inputs: got {got} of texts and tensors, expected exactly one of them")
    check_limit("input rows", len(frame.texts), limits.max_batch_size)
    check_limit("input characters", sum(map(len, frame.texts)), limits.max_text_characters)
    check_limit("input tensors", len(frame.tensors), _MAX_INPUT_TENSORS)
    tensors = wire.decode_named(frame.tensors, field="inputs", finite=True)
    for name, tensor in tensors.items():
        if tensor.ndim == 0:
            raise FieldError(f"inputs[{name}]: got a scalar, expected the batch as first axis")
        check_limit(f"inputs[{name}] rows", tensor.shape[0], limits.max_batch_size, minimum=1)
        if tensor.ndim > 1:
            check_limit(f"inputs[{name}] positions", tensor.shape[1], limits.max_input_len)
    return teacher.prepare(list(frame.texts), tensors)


def _check_rows(inputs: Mapping[str, Tensor], batch: int, other: str) -> None:
    for name, tensor in inputs.items():
        if tensor.shape[0] != batch:
            raise FieldError(f"inputs[{name}]: got {tensor.shape[0]} rows, expected {batch} as in {other}")


def _decode_mask(message: tensors.Tensor, field: str, shape: tuple[int | None, ...]) -> Tensor:
    mask = wire.decode(message, field=field, dtypes=(torch.bool,), shape=shape)
    if not bool(mask.any(-1).all()):
        raise FieldError(f"{field}: got a row without a valid position, expected at least one in each")
    return mask
