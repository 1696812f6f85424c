"""One gRPC stream to one replica.

Sends frames and waits for their answers. When the stream breaks, everybody who waits learns it; what to do
then is decided by `conversation`. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from preceptor import wire
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from student_client.errors import FrameTooLargeError, TeacherError, error_of
from student_client.inbox import Inbox

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from student_client.options import ClientOptions
    from student_client.turns import CodecSnapshot, ForwardAnswer, GradientsAnswer, Turn

__all__ = ["Stream", "StreamLostError", "open_channel"]

_CODEC_PART_BYTES = 1 << 20
_MAX_HELD_CODECS = 2  # as many as a replica keeps
_FRAME_OVERHEAD_BYTES = 64 << 10

AnswerT = TypeVar("AnswerT")


class StreamLostError(Exception):
    """The stream broke.

    Attributes:
        code: the gRPC status it ended with, if it did.
    """

    def __init__(self, cause: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(cause)
        self.code = code


def open_channel(target: str, options: ClientOptions) -> grpc.aio.Channel:
    """Returns a channel of its own to one replica; a shared one would wait out gRPC's reconnect back-off."""
    limit = options.max_frame_bytes + _FRAME_OVERHEAD_BYTES
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.max_send_message_length", limit),
            ("grpc.max_receive_message_length", limit),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ],
    )


class Stream:
    """The student's end of one stream; `start` it before anything else, `close` it at the end."""

    def __init__(self, target: str, options: ClientOptions) -> None:
        self.target = target
        self._options = options
        self._channel = open_channel(target, options)
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._inbox = Inbox()
        self._writing = asyncio.Lock()
        self._known_turns: set[int] = set()
        self._held_codecs: deque[int] = deque(maxlen=_MAX_HELD_CODECS)
        self._window = asyncio.Semaphore(1)
        self._max_frame_bytes = options.max_frame_bytes
        self._lost: StreamLostError | None = None

    async def start(self, open_frame: pb.Open) -> pb.Opened:
        """Opens the conversation at this replica.

        Raises:
            StreamLostError: it can't be reached, or not in time.
            FailedTurnError: it refuses.
        """
        self._call = TeacherServiceStub(self._channel).Converse()  # type: ignore[no-untyped-call]
        self._reader = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                async with self._writing:
                    await self._write([pb.ConverseRequest(open=open_frame)])
                opened = await self._inbox.opened
        except TimeoutError:
            raise self._lose(f"no answer to open within {self._options.connect_timeout_s:g} s") from None
        self._window = asyncio.Semaphore(opened.limits.max_turns_in_flight)
        self._max_frame_bytes = min(self._max_frame_bytes, opened.limits.max_frame_bytes)
        return opened

    @property
    def usable(self) -> bool:
        """Whether new turns may be sent here."""
        return self._lost is None and not self._inbox.draining

    @property
    def num_pending(self) -> int:
        """Turns that await their answer."""
        return self._inbox.num_awaited

    async def forward(self, turn: Turn) -> ForwardAnswer:
        """Sends an Exchange or Observe, with its codec if the replica does not hold it, and waits.

        Raises:
            StreamLostError: the stream broke or gave no answer in time.
            FailedTurnError: the replica refused.
            FrameTooLargeError: the frame is over the replica's limit.
        """
        self._check_size(turn.frame)
        async with self._window:
            future = self._inbox.expect_forward(turn.number)
            await self._send([turn.frame], turn.codec)
            answer = await self._answer(future, f"turn {turn.number}")
        self._known_turns.add(turn.number)
        return answer

    async def backward(self, turn: Turn, grad_values: dict[str, Tensor]) -> GradientsAnswer:
        """Sends the gradients of a turn, replaying the turn first if this replica does not know it.

        Raises:
            StreamLostError, FailedTurnError, FrameTooLargeError: as in `forward`.
        """
        if turn.number not in self._known_turns:
            await self.forward(turn)
        gradients = pb.Backward(turn=turn.number, gradients=wire.encode_named(grad_values))
        frame = pb.ConverseRequest(backward=gradients)
        self._check_size(frame)
        async with self._window:
            future = self._inbox.expect_gradients(turn.number)
            await self._send([frame], None)
            return await self._answer(future, f"gradients of turn {turn.number}")

    def forget(self, reason: pb.Reason, turn: Turn) -> None:
        """Notes that the replica no longer knows a turn or codec version, so that it is sent again."""
        self._known_turns.discard(turn.number)
        if reason == pb.REASON_CODEC_UNKNOWN and turn.codec is not None:
            with contextlib.suppress(ValueError):
                self._held_codecs.remove(turn.codec.version)

    def codec_failure(self, codec: CodecSnapshot | None) -> TeacherError | None:
        """Returns why the replica refused a codec version, or None if it did not."""
        failed = None if codec is None else self._inbox.codec_failures.get(codec.version)
        return None if failed is None else error_of(failed)

    async def close(self) -> None:
        """Ends the stream; whoever still waits is told that it is lost."""
        if self._lost is None and self._call is not None:
            with contextlib.suppress(StreamLostError, grpc.RpcError, asyncio.InvalidStateError):
                await self._send([pb.ConverseRequest(close=pb.Close())], None)
                await self._call.done_writing()
        self._lose("closed by the student")
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        if self._call is not None:
            self._call.cancel()
        await self._channel.close()

    async def _answer(self, future: asyncio.Future[AnswerT], what: str) -> AnswerT:
        try:
            return await asyncio.wait_for(future, self._options.answer_timeout_s)
        except TimeoutError:
            raise self._lose(f"no answer to {what} within {self._options.answer_timeout_s:g} s") from None

    async def _send(self, frames: list[pb.ConverseRequest], codec: CodecSnapshot | None) -> None:
        """Writes frames in one piece, after the codec they need if the replica does not hold it."""
        async with self._writing:
            if codec is not None and codec.version not in self._held_codecs:
                parts = list(codec.frames(min(_CODEC_PART_BYTES, self._max_frame_bytes)))
                for part in parts:
                    self._check_size(part)
                await self._write(parts)
                self._held_codecs.append(codec.version)
            await self._write(frames)

    async def _write(self, frames: Iterable[pb.ConverseRequest]) -> None:
        if self._lost is not None:
            raise StreamLostError(str(self._lost), self._lost.code)
        try:
            for frame in frames:
                await self._call.write(frame)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise self._lose(*_cause(error)) from None

    async def _read(self) -> None:
        try:
            async for answer in self._call:
                self._inbox.take(answer)
            self._lose("the replica ended the stream")
        except (grpc.RpcError, TeacherError) as error:
            self._lose(*_cause(error))
        except asyncio.CancelledError:
            self._lose("cancelled")
            raise

    def _check_size(self, frame: pb.ConverseRequest) -> None:
        if frame.ByteSize() > self._max_frame_bytes:
            raise FrameTooLargeError(
                f"frame {frame.WhichOneof('frame')}: got {frame.ByteSize()} bytes, expected at most "
                f"{self._max_frame_bytes}; send fewer rows a turn"
            )

    def _lose(self, cause: str, code: grpc.StatusCode | None = None) -> StreamLostError:
        """Marks the stream as lost, once, tells everybody who waits, and returns the error."""
        if self._lost is None:
            self._lost = StreamLostError(f"{self.target}: {cause}", code)
            self._inbox.fail_all(self._lost)
        return StreamLostError(str(self._lost), self._lost.code)


def _cause(error: BaseException) -> tuple[str, grpc.StatusCode | None]:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}", error.code()
    return f"{type(error).__name__}: {error}", None
