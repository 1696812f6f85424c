"""One conversation, frame by frame: each turn is sent once, and what came of it is told as it is.

No client stands between that would try again: whoever asks here sees every refusal.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Literal

import grpc
import torch

from benchmarks.pairs import CODEC_SPEC, tensors_of
from preceptor import wire
from preceptor.codec import TeacherCodec
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from student_client.channel import open_channel
from student_client.credit import Credit
from student_client.options import ClientOptions

if TYPE_CHECKING:
    from benchmarks.pairs import Size

__all__ = ["Line", "TurnKind"]

TurnKind = Literal["exchange", "backward"]

_PATIENCE_S = 60.0


class Line:
    """A stream of a tenant; `open` it before anything else. Made on the event loop that it lives on.

    Args:
        target: `host:port`.
        tenant: whose it is.
        token: the tenant's.
        size: of its turns.
        seed: of codec, messages and gradients.

    Attributes:
        tenant: as given.
        numbers: of its turns.
        limits: what the teacher accepts, once it is open.
        num_short: frames that had to wait for credit.
        problems: what went wrong on the stream itself.
    """

    def __init__(self, target: str, tenant: str, token: str, *, size: Size, seed: int) -> None:
        self.tenant = tenant
        self.numbers = itertools.count(1)
        self.limits = pb.Limits()
        self.num_short = 0
        self.problems: list[str] = []
        self._seed = seed
        message, gradient = tensors_of(size, seed)
        exchange = pb.Exchange(codec_version=1, message=wire.encode(message), wants_gradient=True)
        backward = pb.Backward(gradients=wire.encode_named({"reply": gradient}))
        self._frames: dict[TurnKind, pb.ConverseRequest] = {
            "exchange": pb.ConverseRequest(exchange=exchange),
            "backward": pb.ConverseRequest(backward=backward),
        }
        self._channel = open_channel(target, ClientOptions())
        stub = TeacherServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._call: Any = stub.Converse(metadata=(("authorization", f"Bearer {token}"),))
        self._credit = Credit()
        self._writing = asyncio.Lock()
        self._awaited: dict[int, asyncio.Future[pb.ConverseResponse | None]] = {}
        self._reader: asyncio.Task[None] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._reader is None or self._reader.done()

    async def open(self) -> None:
        """Opens the conversation and sends the one codec version that is used.

        Raises:
            RuntimeError: it is refused.
        """
        opening = pb.Open(codec=CODEC_SPEC.to_proto(), reading=pb.READING_REPLACE)
        await self._call.write(pb.ConverseRequest(open=opening))
        answer = await self._call.read()
        if answer is grpc.aio.EOF or not answer.HasField("opened"):
            raise RuntimeError(f"open: got {answer}, expected opened")
        self.limits = answer.opened.limits
        self._credit.open(answer.opened.credit_bytes)
        self._reader = asyncio.create_task(self._read())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            parameters = TeacherCodec(CODEC_SPEC, answer.opened.teacher.hidden_size).state_dict()
        codec = pb.SetCodec(version=1, tensors=wire.encode_named(parameters), complete=True)
        await self._write(pb.ConverseRequest(set_codec=codec))

    async def ask(self, kind: TurnKind, number: int) -> pb.ConverseResponse | None:
        """Sends a frame of a turn and waits for its answer; None if there is none.

        Only one frame of a number may be under way.
        """
        future: asyncio.Future[pb.ConverseResponse | None] = asyncio.get_running_loop().create_future()
        self._awaited[number] = future
        try:
            async with asyncio.timeout(_PATIENCE_S):
                async with self._writing:
                    frame = self._frames[kind]
                    getattr(frame, kind).turn = number  # serialized before others can have the lock
                    await self._write(frame)
                return await future
        except (TimeoutError, grpc.RpcError, asyncio.InvalidStateError):
            self._awaited.pop(number, None)
            return None

    async def close(self) -> None:
        """Ends the conversation."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        self._call.cancel()
        await self._channel.close()

    async def _write(self, frame: pb.ConverseRequest) -> None:
        num_bytes = frame.ByteSize()
        self.num_short += not self._credit.covers(num_bytes)
        await self._credit.spend(num_bytes)
        await self._call.write(frame)

    async def _read(self) -> None:
        problem = "the server ended the stream"
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                self._take(answer)
        except grpc.aio.AioRpcError as error:
            problem = f"{error.code().name}: {error.details()}"
        self.problems.append(problem)
        self._credit.close(asyncio.InvalidStateError(problem))
        for future in self._awaited.values():
            if not future.done():
                future.set_result(None)

    def _take(self, answer: pb.ConverseResponse) -> None:
        """Hands an answer to who waits for it; the last part of gradients stands for all."""
        kind = answer.WhichOneof("frame")
        if kind == "credit":
            self._credit.grant(answer.credit.bytes)
            return
        if kind == "gradients" and not answer.gradients.complete:
            return
        future = self._awaited.pop(getattr(getattr(answer, str(kind)), "turn", 0), None)
        if future is None or future.done():
            self.problems.append(f"got {kind} that nobody waits for: {str(answer)[:200]}")
        else:
            future.set_result(answer)
