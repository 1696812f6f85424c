"""A teacher as seen from synchronous code.

    client = TeacherClient("preceptor://127.0.0.1:41500")
    client.describe().teacher.hidden_size

`TeacherTalk` uses it; few need it themselves.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import grpc

from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from student_client import background
from student_client.conversation import Conversation
from student_client.errors import AccessError, TeacherError, TeacherUnavailableError
from student_client.options import ClientOptions, parse_address
from student_client.stream import open_channel
from student_client.turns import ForwardAnswer, GradientsAnswer, Turn

if TYPE_CHECKING:
    from concurrent.futures import Future

    from torch import Tensor

    from student_client.turns import CodecSnapshot

__all__ = ["ConversationHandle", "TeacherClient"]


class TeacherClient:
    """A teacher at an address.

    It holds no connection, so it may be copied and pickled. A forked child may use it if its parent had not
    talked to any teacher yet.

    Args:
        address: `preceptor://HOST:PORT`, or several `HOST:PORT` of replicas separated by commas.
        options: deadlines and limits.

    Raises:
        ValueError: the address has another form.
    """

    def __init__(self, address: str, options: ClientOptions | None = None) -> None:
        self.address = address
        self.options = options or ClientOptions()
        self._replicas = parse_address(address)

    def describe(self) -> pb.DescribeTeacherResponse:
        """Asks what the teacher is and what it accepts.

        Raises:
            TeacherUnavailableError: no replica answered within `connect_timeout_s`.
            AccessError: it does not tell.
            TeacherError: something else is served there.
        """
        return background.run(self._describe())

    def converse(self, open_frame: pb.Open) -> ConversationHandle:
        """Starts a conversation; its stream is opened with the first turn."""
        return ConversationHandle(self, open_frame)

    async def _describe(self) -> pb.DescribeTeacherResponse:
        problem = ""
        for replica in self._replicas:
            channel = open_channel(replica, self.options)
            try:
                stub = TeacherServiceStub(channel)  # type: ignore[no-untyped-call]
                response: pb.DescribeTeacherResponse = await stub.DescribeTeacher(
                    pb.DescribeTeacherRequest(), timeout=self.options.connect_timeout_s
                )
            except grpc.aio.AioRpcError as error:
                problem = f"{replica}: {error.code().name}: {error.details()}"
                if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                    raise AccessError(problem) from None
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise TeacherError(f"{problem}: no teacher is served there") from None
            else:
                return response
            finally:
                await channel.close()
        raise TeacherUnavailableError(f"no replica of {self.address} answered; the last one: {problem}")


class ConversationHandle:
    """A conversation as seen from synchronous code; safe to use from several threads.

    Attributes:
        waiting_s: seconds that callers have waited for answers so far.
    """

    def __init__(self, client: TeacherClient, open_frame: pb.Open) -> None:
        self._client = client
        self._open_frame = open_frame
        self._numbers = itertools.count(1)
        self._conversation: Conversation | None = None
        self.waiting_s = 0.0

    def send(self, frame: pb.Exchange | pb.Observe, codec: CodecSnapshot | None) -> PendingTurn:
        """Sends an Exchange or Observe without waiting; its `turn` and codec version are filled in here."""
        frame.turn = next(self._numbers)
        if codec is not None:
            frame.codec_version = codec.version
        if isinstance(frame, pb.Exchange):
            request = pb.ConverseRequest(exchange=frame)
        else:
            request = pb.ConverseRequest(observe=frame)
        turn = Turn(frame.turn, request, codec)
        return PendingTurn(self, turn, background.submit(self._forward(turn)))

    def wait(self, future: Future[Any]) -> Any:
        """Waits for an answer and counts the time."""
        start = time.perf_counter()
        try:
            return future.result()
        finally:
            self.waiting_s += time.perf_counter() - start

    @property
    def num_reconnects(self) -> int:
        """How often the stream had to be opened again."""
        return max(self._conversation.num_reconnects, 0) if self._conversation else 0

    def close(self) -> None:
        """Ends the conversation."""
        background.run(self._close())

    async def _close(self) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            await conversation.close()

    def _current(self) -> Conversation:
        """Returns the conversation; called on the background loop only."""
        if self._conversation is None:
            client, frame = self._client, pb.Open()
            frame.CopyFrom(self._open_frame)
            self._conversation = Conversation(parse_address(client.address), frame, client.options)
        return self._conversation

    async def _forward(self, turn: Turn) -> ForwardAnswer:
        return await self._current().forward(turn)

    async def _backward(self, turn: Turn, grad_values: dict[str, Tensor]) -> GradientsAnswer:
        return await self._current().backward(turn, grad_values)


class PendingTurn:
    """A turn on its way."""

    def __init__(self, handle: ConversationHandle, turn: Turn, future: Future[ForwardAnswer]) -> None:
        self._handle = handle
        self._turn = turn
        self._future = future

    def result(self) -> ForwardAnswer:
        """Waits for what the turn returns.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        answer: ForwardAnswer = self._handle.wait(self._future)
        return answer

    def backward(self, grad_values: dict[str, Tensor]) -> GradientsAnswer:
        """Sends the gradients of what the turn returned and waits for those of what it was computed from.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        handle = self._handle
        future = background.submit(handle._backward(self._turn, grad_values))  # noqa: SLF001 - one unit
        answer: GradientsAnswer = handle.wait(future)
        return answer
