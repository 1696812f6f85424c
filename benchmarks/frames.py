"""Times frames of the protocol on the wire, written by hand and sent by a raw `grpc.aio` client.

A round trip is: serialize one Exchange, send it, have it checked, queued, computed and answered, receive and
parse the Reply. Streams are open throughout and one frame is under way at a time.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import grpc
import torch

from preceptor import wire
from preceptor.codec import CodecKind, CodecSpec, TeacherCodec
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["FrameTimes", "RawStream", "time_frames"]

_LEN = 64
_FLOAT_BYTES = 4
_MAX_FRAME_BYTES = 16 << 20


@dataclass
class FrameTimes:
    """What round trips took, in milliseconds.

    Attributes:
        total_ms: from before serializing the Exchange until its Reply is parsed.
        compute_ms: the part of it that the compute thread says it worked.
    """

    total_ms: list[float] = field(default_factory=list)
    compute_ms: list[float] = field(default_factory=list)


class RawStream:
    """One conversation with a teacher whose width is that of the messages.

    Args:
        target: `host:port`.
        width: of hidden states and of messages.
    """

    def __init__(self, target: str, width: int) -> None:
        self._spec = CodecSpec(kind=CodecKind.LINEAR, message_dim=width)
        limits = [(f"grpc.max_{way}_message_length", _MAX_FRAME_BYTES) for way in ("send", "receive")]
        self._channel = grpc.aio.insecure_channel(target, options=[*limits, ("grpc.enable_http_proxy", 0)])
        self._call: Any = TeacherServiceStub(self._channel).Converse()  # type: ignore[no-untyped-call]
        self._turn = 0

    async def __aenter__(self) -> Self:
        """Opens the conversation and sends the one codec version that is used."""
        opening = pb.Open(codec=self._spec.to_proto(), reading=pb.READING_REPLACE)
        await self._call.write(pb.ConverseRequest(open=opening))
        answer = await self._call.read()
        if not answer.HasField("opened"):
            raise RuntimeError(f"open: got {answer}, expected opened")
        torch.manual_seed(0)
        parameters = TeacherCodec(self._spec, self._spec.message_dim).state_dict()
        codec = pb.SetCodec(version=1, tensors=wire.encode_named(parameters), complete=True)
        await self._call.write(pb.ConverseRequest(set_codec=codec))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the conversation."""
        await self._call.write(pb.ConverseRequest(close=pb.Close()))
        await self._call.done_writing()
        await self._channel.close()

    async def time_frames(self, message: torch.Tensor, num_frames: int, times: FrameTimes) -> None:
        """Sends a message again and again, each time as a new turn, and appends what it took to `times`."""
        exchange = pb.Exchange(codec_version=1, message=wire.encode(message))
        request = pb.ConverseRequest(exchange=exchange)
        for _ in range(num_frames):
            self._turn += 1
            request.exchange.turn = self._turn
            start = time.perf_counter()
            await self._call.write(request)
            answer = await self._call.read()
            while answer.HasField("credit"):  # of earlier frames; it is never short of any
                answer = await self._call.read()
            elapsed_s = time.perf_counter() - start
            if answer.reply.turn != self._turn:
                raise RuntimeError(f"exchange: got {answer}, expected the reply to turn {self._turn}")
            times.total_ms.append(elapsed_s * 1000)
            times.compute_ms.append(answer.reply.receipt.compute_ms)


async def time_frames(
    targets: dict[str, str], payload_bytes: int, *, width: int, num_blocks: int, num_frames: int
) -> dict[str, FrameTimes]:
    """Times messages of one size at several servers, in alternating blocks so that all see the same noise.

    Args:
        targets: `host:port` by name.
        payload_bytes: of the message.
        width: of the message; it has as many rows of 64 positions as fill the payload.
        num_blocks: how many blocks of each server; one more goes ahead and is not counted.
        num_frames: round trips a block.

    Returns:
        What they took, by name.
    """
    rows, rest = divmod(payload_bytes, _FLOAT_BYTES * _LEN * width)
    if rest:
        raise ValueError(f"payload_bytes: got {payload_bytes}, expected a multiple of {payload_bytes - rest}")
    message = torch.randn(rows, _LEN, width, generator=torch.Generator().manual_seed(0))
    streams = {name: RawStream(target, width) for name, target in targets.items()}
    times = {name: FrameTimes() for name in targets}
    async with contextlib.AsyncExitStack() as stack:
        for stream in streams.values():
            await stack.enter_async_context(stream)
            await stream.time_frames(message, num_frames, FrameTimes())
        for block in range(num_blocks):
            names = list(streams) if block % 2 else list(streams)[::-1]
            for name in names:
                await streams[name].time_frames(message, num_frames, times[name])
    return times
