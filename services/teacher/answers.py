"""Builds the frames that answer a student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preceptor import wire
from preceptor.v1 import teacher_pb2 as pb
from services.teacher.describe import describe_limits, describe_teacher
from services.teacher.errors import LimitError
from services.teacher.work import ExchangeTurn

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from preceptor.v1 import tensor_pb2 as tensors
    from services.teacher.config import LimitsConfig
    from services.teacher.families.base import TeacherFacts
    from services.teacher.turns import KeptTurn
    from services.teacher.work import ForwardResult, GradientsResult, Turn

__all__ = ["forward", "gradients", "opened"]


def opened(
    conversation_id: str,
    facts: TeacherFacts,
    limits: LimitsConfig,
    split_layer: int,
    default_split_layer: int,
) -> pb.ConverseResponse:
    """Answers Open."""
    return pb.ConverseResponse(
        opened=pb.Opened(
            conversation_id=conversation_id,
            teacher=describe_teacher(facts, default_split_layer),
            limits=describe_limits(limits),
            split_layer=split_layer,
        )
    )


def forward(
    number: int, kept: KeptTurn, result: ForwardResult, dtype: torch.dtype, max_frame_bytes: int
) -> pb.ConverseResponse:
    """Answers Exchange with Reply, Observe with Observation.

    Raises:
        LimitError: the answer does not fit a frame.
    """
    receipt = _receipt(kept.turn, result.queue_ms, result.compute_ms, kept.num_bytes)
    if isinstance(kept.turn, ExchangeTurn):
        reply = wire.encode(result.values["reply"], dtype)
        answer = pb.ConverseResponse(reply=pb.Reply(turn=number, reply=reply, receipt=receipt))
    else:
        values = wire.encode_named(result.values, dtype)
        answer = pb.ConverseResponse(observation=pb.Observation(turn=number, values=values, receipt=receipt))
    if answer.ByteSize() > max_frame_bytes:
        raise LimitError(
            f"answer: got {answer.ByteSize()} bytes, expected at most {max_frame_bytes};"
            " send fewer rows a turn"
        )
    return answer


def gradients(
    number: int,
    turn: Turn,
    result: GradientsResult,
    request_bytes: int,
    dtype: torch.dtype,
    max_frame_bytes: int,
) -> Iterator[pb.ConverseResponse]:
    """Answers Backward, in as many parts as the frame size asks for; codec gradients stay float32."""
    source = pb.GRAPH_SOURCE_RETAINED if result.retained else pb.GRAPH_SOURCE_RECOMPUTED
    receipt = _receipt(turn, result.queue_ms, result.compute_ms, request_bytes)
    receipt.graph_source = source
    message = None if result.message is None else wire.encode(result.message, dtype)
    num_bytes = 0 if message is None else message.ByteSize()
    part = pb.Gradients(turn=number, message=message)
    for tensor in wire.encode_named(result.codec):
        if num_bytes + tensor.ByteSize() > max_frame_bytes // 2 and num_bytes:
            yield pb.ConverseResponse(gradients=part)
            part, num_bytes = pb.Gradients(turn=number), 0
        num_bytes += _append(part, tensor)
    part.complete = True
    part.receipt.CopyFrom(receipt)
    yield pb.ConverseResponse(gradients=part)


def _append(part: pb.Gradients, tensor: tensors.NamedTensor) -> int:
    part.codec.append(tensor)
    return tensor.ByteSize()


def _receipt(turn: Turn, queue_ms: float, compute_ms: float, request_bytes: int) -> pb.Receipt:
    return pb.Receipt(
        queue_ms=queue_ms,
        compute_ms=compute_ms,
        tokens=turn.num_tokens,
        request_bytes=request_bytes,
        num_conversations=1,
        codec_version=turn.codec_version,
    )
