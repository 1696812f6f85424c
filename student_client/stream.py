"""One gRPC stream to one replica.

Sends frames and waits for their answers. When the stream breaks, everybody who waits learns it; what to do
then is decided by `conversation`. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from preceptor.compression import Compression, WireType, encode_named
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from student_client.channel import open_channel
from student_client.costs import Costs
from student_client.credentials import metadata_of
from student_client.errors import FrameTooLargeError, TeacherError, error_of
from student_client.inbox import Inbox, awaited
from student_client.lost import StreamLostError, cause_of
from student_client.times import Journey
from student_client.tracing import stamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from torch import Tensor

    from student_client.options import ClientOptions
    from student_client.turns import CodecSnapshot, ForwardAnswer, GradientsAnswer, Turn

__all__ = ["Stream", "StreamLostError"]

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 1.0  # for telling the replica so; the stream ends without it too
_CODEC_PART_BYTES = 1 << 20
_MAX_HELD_CODECS = 2  # as many as a replica keeps

AnswerT = TypeVar("AnswerT")


class Stream:
    """The student's end of one stream; `start` it before anything else, `close` it at the end.

    Attributes:
        target: HOST:PORT of the replica.
        lost: why the stream broke, if it did.
        conversation_id: as the replica calls it in its logs; empty until it is open.
    """

    def __init__(self, target: str, options: ClientOptions, costs: Costs | None = None) -> None:
        self.target = target
        self._options, self._costs = options, costs or Costs()
        self._channel = open_channel(target, options)
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._inbox = Inbox()
        self._writing = asyncio.Lock()
        self._known_turns: deque[int] = deque()
        self._held_codecs: deque[int] = deque(maxlen=_MAX_HELD_CODECS)
        self._window = asyncio.Semaphore(1)
        self._max_frame_bytes = options.max_frame_bytes
        self._gradient_type = WireType.FLOAT32
        self.lost: StreamLostError | None = None
        self.conversation_id = ""

    async def start(self, open_frame: pb.Open) -> pb.Opened:
        """Opens the conversation at this replica.

        Raises:
            StreamLostError: it can't be reached, or not in time.
            FailedTurnError: it refuses.
        """
        stub = TeacherServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._call = stub.Converse(metadata=metadata_of(self._options, self.target))
        self._reader = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                async with self._writing:
                    await self._write_free(pb.ConverseRequest(open=open_frame))
                opened = await self._inbox.opened
        except TimeoutError:
            raise self._lose(f"no answer to open within {self._options.connect_timeout_s:g} s") from None
        except asyncio.CancelledError:
            self._lose("nobody waits for it any more")  # so that it is closed without a word
            raise
        self.conversation_id = opened.conversation_id
        self._gradient_type = Compression.from_proto(open_frame.compression).gradient
        self._window = asyncio.Semaphore(opened.limits.max_turns_in_flight)
        self._known_turns = deque(maxlen=opened.limits.max_retained_turns)
        self._max_frame_bytes = min(self._max_frame_bytes, opened.limits.max_frame_bytes)
        return opened

    @property
    def usable(self) -> bool:
        """Whether new turns may be sent here."""
        return self.lost is None and not self._inbox.draining

    @property
    def num_pending(self) -> int:
        """Turns that await their answer."""
        return self._inbox.num_awaited

    async def forward(self, turn: Turn, journey: Journey | None = None) -> ForwardAnswer:
        """Sends an Exchange or Observe, with its codec if the replica does not hold it, and waits.

        Raises:
            StreamLostError: the stream broke or gave no answer in time.
            FailedTurnError: the replica refused.
            FrameTooLargeError: the frame is over the replica's limit.
        """
        self._ready(turn.frame)
        journey = journey or Journey()
        async with journey.room(self._window):
            with awaited(self._inbox.expect_forward(turn.number)) as future:
                journey.sent()
                answer = await self._ask(turn.frame, turn.codec, future, f"turn {turn.number}")
                journey.answered(answer.receipt)
        self._known_turns.append(turn.number)
        return answer

    async def backward(
        self, turn: Turn, grad_values: dict[str, Tensor], journey: Journey | None = None
    ) -> GradientsAnswer:
        """Sends the gradients of a turn, replaying the turn first if this replica does not know it.

        Raises:
            StreamLostError, FailedTurnError, FrameTooLargeError: as in `forward`.
        """
        if turn.number not in self._known_turns:
            await self.forward(turn)
        journey = journey or Journey()
        gradients = encode_named(grad_values, self._gradient_type)
        backward = pb.Backward(turn=turn.number, gradients=gradients)
        frame = self._ready(pb.ConverseRequest(backward=backward))
        async with journey.room(self._window):
            with awaited(self._inbox.expect_gradients(turn.number)) as future:
                journey.sent()
                answer = await self._ask(frame, None, future, f"gradients of turn {turn.number}")
                journey.answered(answer.receipt)
        return answer

    async def read_ahead(self, turn: Turn) -> ForwardAnswer | None:
        """Sends an Observe that reads ahead and waits for it; returns None if there is no room or no answer.

        Turns that somebody waits for come first: it takes no place and no credit that would have to be waited
        for, and does not give the replica up if there is no answer.

        Raises:
            StreamLostError, FailedTurnError, FrameTooLargeError: as in `forward`.
        """
        self._ready(turn.frame)
        if self._window.locked() or not self._inbox.credit.covers(turn.frame.ByteSize()):
            return None
        async with self._window:
            with awaited(self._inbox.expect_forward(turn.number)) as future:
                async with self._in_time(f"no room for turn {turn.number}, read ahead,"):
                    await self._send(turn.frame, None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._options.answer_timeout_s):
                        return await future
        return None

    async def push_codec(self, codec: CodecSnapshot) -> None:
        """Sends a version of the codec before a turn needs it, if the replica was sent an earlier one.

        Raises:
            StreamLostError, FrameTooLargeError: as in `forward`.
        """
        if self._held_codecs:
            async with self._in_time(f"no room for codec {codec.version}"), self._writing:
                await self._write_codec(codec)

    def forget(self, reason: pb.Reason, turn: Turn) -> None:
        """Notes that the replica no longer knows a turn or codec version, so that it is sent again."""
        with contextlib.suppress(ValueError):
            self._known_turns.remove(turn.number)
        if reason == pb.REASON_CODEC_UNKNOWN and turn.codec is not None:
            with contextlib.suppress(ValueError):
                self._held_codecs.remove(turn.codec.version)

    def codec_failure(self, codec: CodecSnapshot | None) -> TeacherError | None:
        """Returns why the replica refused a codec version, or None if it did not."""
        failed = None if codec is None else self._inbox.codec_failures.get(codec.version)
        return None if failed is None else error_of(failed)

    async def close(self) -> None:
        """Ends the stream; whoever still waits is told that it is lost."""
        self._inbox.credit.close(StreamLostError(f"{self.target}: closed by the student"))
        try:
            if self.lost is None and self._call is not None:
                with contextlib.suppress(
                    StreamLostError, grpc.RpcError, asyncio.InvalidStateError, TimeoutError
                ):
                    async with asyncio.timeout(_CLOSE_TIMEOUT_S), self._writing:
                        await self._write_free(pb.ConverseRequest(close=pb.Close()))
                        await self._call.done_writing()
        finally:  # whoever closes it may have been stopped
            self._lose("closed by the student")
            if self._reader is not None:
                self._reader.cancel()
                await asyncio.wait([self._reader], timeout=_CLOSE_TIMEOUT_S)
            if self._call is not None:
                self._call.cancel()
            await self._channel.close()

    async def _ask(
        self,
        frame: pb.ConverseRequest,
        codec: CodecSnapshot | None,
        future: asyncio.Future[AnswerT],
        what: str,
    ) -> AnswerT:
        """Sends a frame and waits for its answer."""
        async with self._in_time(f"no answer to {what}"):
            await self._send(frame, codec)
            return await future

    @contextlib.asynccontextmanager
    async def _in_time(self, problem: str) -> AsyncIterator[None]:
        """Gives the stream up after `answer_timeout_s`, or if it is stopped: a codec may be sent in part."""
        try:
            async with asyncio.timeout(self._options.answer_timeout_s):
                yield
        except TimeoutError:
            raise self._lose(f"{problem} within {self._options.answer_timeout_s:g} s") from None
        except asyncio.CancelledError:
            self._lose(f"{problem} before the turn's deadline")
            raise

    async def _send(self, frame: pb.ConverseRequest, codec: CodecSnapshot | None) -> None:
        """Writes a frame, after the codec it needs if the replica does not hold it; nothing comes between."""
        async with self._writing:
            if codec is not None:
                await self._write_codec(codec)
            await self._write([frame])

    async def _write_codec(self, codec: CodecSnapshot) -> None:
        if codec.version in self._held_codecs:
            return
        parts = [self._ready(part) for part in codec.frames(min(_CODEC_PART_BYTES, self._max_frame_bytes))]
        await self._write(parts)
        self._held_codecs.append(codec.version)

    async def _write(self, frames: Iterable[pb.ConverseRequest]) -> None:
        """Writes frames one by one, each as soon as its credit is there."""
        for frame in frames:
            await self._inbox.credit.spend(frame.ByteSize())
            await self._write_free(frame)

    async def _write_free(self, frame: pb.ConverseRequest) -> None:
        if self.lost is not None:
            raise StreamLostError(str(self.lost), self.lost.code)
        try:
            await self._call.write(frame)
            self._costs.sent(frame)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise self._lose(*cause_of(error)) from None

    async def _read(self) -> None:
        try:
            async for answer in self._call:
                self._costs.received(answer)
                self._inbox.take(answer)
            self._lose("the replica ended the stream")
        except (grpc.RpcError, TeacherError) as error:
            self._lose(*cause_of(error))
        except asyncio.CancelledError:
            self._lose("cancelled")
            raise
        except Exception as error:  # a defect of this client; whoever waits has to learn of it
            logger.exception("%s: an answer could not be taken", self.target)
            self._lose(*cause_of(error))

    def _ready(self, frame: pb.ConverseRequest) -> pb.ConverseRequest:
        """Has a frame name its trace and returns it, unless it is larger than the replica takes."""
        stamp(frame, self.target, self.conversation_id)
        if frame.ByteSize() > self._max_frame_bytes:
            raise FrameTooLargeError(
                f"frame {frame.WhichOneof('frame')}: got {frame.ByteSize()} bytes, expected at most "
                f"{self._max_frame_bytes}; send fewer rows a turn"
            )
        return frame

    def _lose(self, cause: str, code: grpc.StatusCode | None = None) -> StreamLostError:
        """Marks the stream as lost, once, tells everybody who waits, and returns the error."""
        if self.lost is None:
            self.lost = StreamLostError(f"{self.target}: {cause}", code)
            self._inbox.fail_all(self.lost)
        return StreamLostError(str(self.lost), self.lost.code)
