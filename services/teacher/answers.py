"""Builds the frames that answer a student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preceptor.compression import WireType, encode, encode_named
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1 import tensor_pb2 as tensors
from services.teacher.describe import describe_limits, describe_teacher
from services.teacher.errors import LimitError
from services.teacher.work import ExchangeTurn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from preceptor.compression import Compression
    from services.teacher.agreement import Agreement
    from services.teacher.config import LimitsConfig
    from services.teacher.families.base import TeacherFacts
    from services.teacher.turns import KeptTurn
    from services.teacher.work import Cost, ForwardResult, GradientsResult, Turn

__all__ = ["forward", "gradients", "opened"]

_RANK_OF_STATES = 3


def opened(
    agreement: Agreement, facts: TeacherFacts, limits: LimitsConfig, default_split_layer: int
) -> pb.ConverseResponse:
    """Answers Open."""
    return pb.ConverseResponse(
        opened=pb.Opened(
            conversation_id=agreement.speaker.conversation,
            teacher=describe_teacher(facts, default_split_layer),
            limits=describe_limits(limits),
            split_layer=agreement.split_layer,
            compression=agreement.compression.to_proto(),
            credit_bytes=limits.credit_bytes,
        )
    )


def forward(
    number: int, kept: KeptTurn, result: ForwardResult, compression: Compression, max_frame_bytes: int
) -> tuple[pb.ConverseResponse, int]:
    """Answers Exchange with Reply, Observe with Observation; says how many bytes the answer has.

    Raises:
        LimitError: the answer does not fit a frame.
    """
    receipt = _receipt(kept.turn, result.cost, kept.num_bytes)
    wire_type = compression.reply
    if isinstance(kept.turn, ExchangeTurn):
        reply = encode(result.values["reply"], wire_type)
        answer = pb.ConverseResponse(reply=pb.Reply(turn=number, reply=reply, receipt=receipt))
    else:
        values = [
            tensors.NamedTensor(name=name, tensor=encode(value, _observation_type(value, wire_type)))
            for name, value in result.values.items()
        ]
        answer = pb.ConverseResponse(observation=pb.Observation(turn=number, values=values, receipt=receipt))
    num_bytes = answer.ByteSize()
    if num_bytes > max_frame_bytes:
        raise LimitError(
            f"answer: got {num_bytes} bytes, expected at most {max_frame_bytes}; send fewer rows a turn"
        )
    return answer, num_bytes


def _observation_type(value: Tensor, wire_type: WireType) -> WireType:
    """Spares int8 the values that are narrow and told apart by little: logits, pooled states, distances."""
    return WireType.FLOAT32 if wire_type is WireType.INT8 and value.ndim < _RANK_OF_STATES else wire_type


def gradients(
    number: int,
    turn: Turn,
    result: GradientsResult,
    request_bytes: int,
    compression: Compression,
    max_frame_bytes: int,
) -> Iterator[tuple[pb.ConverseResponse, int]]:
    """Answers Backward, in as many parts as the frame size asks for; says how many bytes each has."""
    receipt = _receipt(turn, result.cost, request_bytes)
    receipt.graph_source = pb.GRAPH_SOURCE_RETAINED if result.retained else pb.GRAPH_SOURCE_RECOMPUTED
    wire_type = compression.gradient
    message = None if result.message is None else encode(result.message, wire_type)
    num_bytes = 0 if message is None else _framed(message.ByteSize())
    part = pb.Gradients(turn=number, message=message)
    for tensor in encode_named(result.codec, wire_type):
        size = tensor.ByteSize()
        if size > max_frame_bytes:
            raise LimitError(
                f"gradient of {tensor.name}: got {size} bytes, expected at most {max_frame_bytes}"
            )
        if num_bytes + size > max_frame_bytes // 2 and num_bytes:
            head = pb.Gradients(turn=number)
            yield pb.ConverseResponse(gradients=part), _framed(head.ByteSize() + num_bytes)
            part, num_bytes = pb.Gradients(turn=number), 0
        part.codec.append(tensor)
        num_bytes += _framed(size)
    head = pb.Gradients(turn=number, complete=True, receipt=receipt)
    part.MergeFrom(head)
    yield pb.ConverseResponse(gradients=part), _framed(head.ByteSize() + num_bytes)


def _framed(num_bytes: int) -> int:
    """Returns the bytes of a message with its tag and length; to ask the whole would write it once more."""
    return 1 + max((num_bytes.bit_length() + 6) // 7, 1) + num_bytes


def _receipt(turn: Turn, cost: Cost, request_bytes: int) -> pb.Receipt:
    return pb.Receipt(
        queue_ms=cost.queue_ms,
        compute_ms=cost.compute_ms,
        tokens=turn.num_tokens,
        request_bytes=request_bytes,
        num_conversations=cost.num_conversations,
        num_tenants=cost.num_tenants,
        num_cached_rows=cost.num_cached_rows,
        codec_version=turn.codec_version,
    )
