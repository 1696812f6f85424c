"""Turns a student's frames into checked work: all that is decided about wire data is decided here.

Nothing reaches the compute thread that could fail there for a reason the student can help. Every refusal
names the field, what came and what was expected. Knows the protocol and the teacher's facts, but neither
conversations nor gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError

from preceptor import wire
from preceptor.codec import CodecSpec, TeacherCodec
from preceptor.terms import OBSERVATION_KINDS, READINGS, ObservationKind, Reading
from preceptor.v1 import teacher_pb2 as pb
from services.teacher.errors import FieldError, LimitError, TeacherChangedError
from services.teacher.work import ExchangeTurn, ObserveTurn, Turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from preceptor.v1 import tensor_pb2 as tensors
    from services.teacher.config import LimitsConfig
    from services.teacher.families.base import Teacher

__all__ = [
    "Agreement",
    "agree",
    "build_codec",
    "check_backward",
    "check_exchange",
    "check_observe",
    "check_tokens",
    "requested_kinds",
]


@dataclass(frozen=True)
class Agreement:
    """What the two ends of a conversation agreed on when it was opened."""

    spec: CodecSpec
    reading: Reading
    split_layer: int
    wire_dtype: torch.dtype
    codec_shapes: Mapping[str, torch.Size]


def agree(frame: pb.Open, teacher: Teacher, limits: LimitsConfig, default_split_layer: int) -> Agreement:
    """Checks an Open.

    Raises:
        FieldError, LimitError, TeacherChangedError: naming the field.
    """
    facts = teacher.facts
    if frame.expected_fingerprint not in ("", facts.fingerprint):
        raise TeacherChangedError(
            f"expected_fingerprint: got {frame.expected_fingerprint}, this teacher's is {facts.fingerprint}"
        )
    try:
        spec = CodecSpec.from_proto(frame.codec)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["codec", *map(str, first["loc"])])
        raise FieldError(f"{where}: got {first['input']!r}: {first['msg']}") from None
    except ValueError as error:
        raise FieldError(str(error)) from None
    if frame.reading not in READINGS:
        raise FieldError(f"reading: got {frame.reading}, expected one of {_names(pb.Reading, READINGS)}")
    _check_limit("codec.message_dim", spec.message_dim, limits.max_message_dim)
    _check_limit("codec.message_len", spec.message_len or 0, limits.max_message_len)
    shapes = TeacherCodec.shapes(spec, facts.hidden_size)
    _check_limit(
        "codec parameters", sum(shape.numel() for shape in shapes.values()), limits.max_codec_parameters
    )
    split_layer = frame.split_layer if frame.HasField("split_layer") else default_split_layer
    if split_layer > facts.num_layers:
        raise FieldError(f"split_layer: got {split_layer}, expected 0 to {facts.num_layers}")
    return Agreement(spec, READINGS[frame.reading], split_layer, _wire_dtype(frame), shapes)


def _wire_dtype(frame: pb.Open) -> torch.dtype:
    if not frame.wire_data_type:
        return torch.float32
    dtype = wire.to_torch_dtype(frame.wire_data_type, field="wire_data_type")
    if dtype not in wire.FLOAT_TYPES:
        raise FieldError(
            f"wire_data_type: got {wire.data_type_name(dtype)}, expected float32, float16 or bfloat16"
        )
    return dtype


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
    _check_limit("message rows", batch, limits.max_batch_size, minimum=1)
    _check_limit("message positions", length, limits.max_message_len, minimum=1)
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
    rows = next(iter(inputs.values())).shape[0]
    message_mask = None
    if codec is not None and agreement.spec.message_len is not None:
        message_mask = torch.ones(rows, agreement.spec.message_len, dtype=torch.bool)
    elif codec is not None and frame.HasField("mask"):
        message_mask = _decode_mask(frame.mask, "mask", (rows, None))
        _check_limit("mask positions", message_mask.shape[1], limits.max_message_len)
    return ObserveTurn(
        codec=codec,
        codec_version=0 if codec is None else frame.codec_version,
        inputs=inputs,
        kinds=requested_kinds(frame),
        split_layer=agreement.split_layer,
        message_mask=message_mask,
        wants_gradient=frame.wants_gradient and codec is not None,
    )


def requested_kinds(frame: pb.Observe) -> frozenset[ObservationKind]:
    """Returns what an Observe asks for.

    Raises:
        FieldError: nothing, or a kind that is not known.
    """
    for kind in frame.kinds:
        if kind not in OBSERVATION_KINDS:
            raise FieldError(
                f"kinds: got {kind}, expected some of {_names(pb.ObservationKind, OBSERVATION_KINDS)}"
            )
    if not frame.kinds:
        raise FieldError(f"kinds: got none, expected some of {_names(pb.ObservationKind, OBSERVATION_KINDS)}")
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
    _check_limit("rows x positions", turn.num_tokens, limits.max_turn_tokens)


def _prepare(frame: pb.Inputs, teacher: Teacher, limits: LimitsConfig) -> dict[str, Tensor]:
    if bool(frame.texts) == bool(frame.tensors):
        got = "both" if frame.texts else "neither"
        raise FieldError(f"inputs: got {got} of texts and tensors, expected exactly one of them")
    _check_limit("input rows", len(frame.texts), limits.max_batch_size)
    _check_limit("input characters", sum(map(len, frame.texts)), limits.max_text_characters)
    tensors = wire.decode_named(frame.tensors, field="inputs", finite=True)
    for name, tensor in tensors.items():
        if tensor.ndim == 0:
            raise FieldError(f"inputs[{name}]: got a scalar, expected the batch as first axis")
        _check_limit(f"inputs[{name}] rows", tensor.shape[0], limits.max_batch_size, minimum=1)
        if tensor.ndim > 1:
            _check_limit(f"inputs[{name}] positions", tensor.shape[1], limits.max_input_len)
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


def _check_limit(field: str, got: int, limit: int, minimum: int = 0) -> None:
    if got < minimum:
        raise FieldError(f"{field}: got {got}, expected at least {minimum}")
    if got > limit:
        raise LimitError(f"{field}: got {got}, expected at most {limit}")


def _names(enum: type, values: Iterable[int]) -> str:
    return ", ".join(enum.Name(value) for value in values)  # type: ignore[attr-defined]
