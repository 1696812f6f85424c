"""A teacher as seen from synchronous code.

    client = TeacherClient("preceptor://127.0.0.1:41500")
    client.describe().teacher.hidden_size

`TeacherTalk` uses it; few need it themselves.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from preceptor.compression import Compression, WireType
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from student_client import background, tracing
from student_client.channel import open_channel, with_hint
from student_client.conversation import Conversation
from student_client.costs import Costs
from student_client.credentials import metadata_of
from student_client.errors import TeacherError, TeacherUnavailableError, UnsupportedByTeacherError
from student_client.options import ClientOptions, parse_address
from student_client.pending_turns import PendingTurn
from student_client.replicas import ReplicaFinder
from student_client.times import Journey, WaitingClock
from student_client.turns import ForwardAnswer, GradientsAnswer, Turn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from torch import Tensor

    from student_client.times import WaitingTimes
    from student_client.turns import CodecSnapshot

__all__ = ["ConversationHandle", "TeacherClient"]

logger = logging.getLogger(__name__)

_MAX_READ_AHEAD = 2  # batches on their way
_GRACE_S = 30.0  # what a wait may take beyond its deadline on a busy machine
_NUM_SKIPPED = 16  # batches, after one that was found in the teacher's cache


class TeacherClient:
    """A teacher at an address.

    It holds no connection, so it may be copied and pickled. A forked child may use it if its parent had not
    talked to any teacher yet.

    Args:
        address: `preceptor://HOST:PORT` of any replica or of the service's directory, from which the others
            are found; or several, separated by commas. `preceptors://` talks under TLS.
        options: deadlines and limits.

    Raises:
        ValueError: the address has another form.
    """

    def __init__(self, address: str, options: ClientOptions | None = None) -> None:
        self.address = address
        where = parse_address(address)
        self.options = (options or ClientOptions()).at(where)
        self.replicas = where.replicas

    def describe(self) -> pb.DescribeTeacherResponse:
        """Asks what the teacher is and what it accepts.

        Raises:
            TeacherUnavailableError: no replica answered, each within `connect_timeout_s`, all of them within
                `deadline_s`.
            AccessError: it does not tell.
            TeacherError: something else is served there.
        """
        options = self.options
        return background.run(self._describe(), f"{self.address}: describe", options.deadline_s + _GRACE_S)

    def converse(self, open_frame: pb.Open) -> ConversationHandle:
        """Starts a conversation; its stream is opened with the first turn."""
        return ConversationHandle(self, open_frame)

    async def _describe(self) -> pb.DescribeTeacherResponse:
        try:
            async with asyncio.timeout(self.options.deadline_s):
                return await self._first_description()
        except TimeoutError:
            raise self._unanswered(f"none within {self.options.deadline_s:g} s") from None

    async def _first_description(self) -> pb.DescribeTeacherResponse:
        problem = ""
        finder = ReplicaFinder(self.replicas, self.options)
        for replica in await finder.find(opens_conversation=False):
            channel = open_channel(replica, self.options)
            try:
                stub = TeacherServiceStub(channel)  # type: ignore[no-untyped-call]
                response: pb.DescribeTeacherResponse = await stub.DescribeTeacher(
                    pb.DescribeTeacherRequest(),
                    timeout=self.options.connect_timeout_s,
                    metadata=metadata_of(self.options, replica),
                )
            except grpc.aio.AioRpcError as error:
                problem = f"{replica}: {error.code().name}: {error.details()}"
                refusal = finder.refusal(error.code(), problem)
                if refusal is not None:
                    raise refusal from None
            else:
                return response
            finally:
                await channel.close()
        raise self._unanswered(f"the last one: {with_hint(problem, self.options)}")

    def _unanswered(self, why: str) -> TeacherUnavailableError:
        return TeacherUnavailableError(f"no replica of {self.address} answered; {why}")


class ConversationHandle:
    """A conversation as seen from synchronous code; safe to use from several threads.

    Attributes:
        gradient_type: the type in which gradients travel.
        costs: what it has cost so far.
    """

    def __init__(self, client: TeacherClient, open_frame: pb.Open) -> None:
        self._client = client
        self._open_frame = open_frame
        self._numbers = itertools.count(1)
        self._conversation: Conversation | None = None
        self._num_to_skip = 0.0
        self._ahead_room = threading.Semaphore(_MAX_READ_AHEAD)
        self._waiting = WaitingClock()
        self.costs = Costs()
        self.gradient_type: WireType = Compression.from_proto(open_frame.compression).gradient

    def send(self, frame: pb.Exchange | pb.Observe, codec: CodecSnapshot | None) -> PendingTurn:
        """Sends an Exchange or Observe without waiting; its `turn` and codec version are filled in here."""
        turn, journey = self._turn(frame, codec), Journey()
        kind = "exchange" if isinstance(frame, pb.Exchange) else "observe"
        work = tracing.turn(kind, turn.number, partial(self._forward, turn, journey))
        return PendingTurn(self, turn, background.submit(work), journey)

    def read_ahead(self, frames: Sequence[pb.Observe]) -> None:
        """Sends the Observes of one batch that read ahead; returns at once and never fails.

        They are dropped while two batches are on their way, while there is no stream or no room on it, for
        some time once the teacher had a batch in its cache already, and for good once it said that it can't.
        """
        if self._num_to_skip > 0:
            self._num_to_skip -= 1
        elif self._ahead_room.acquire(blocking=False):
            try:
                background.submit(self._read_ahead([self._turn(frame, None) for frame in frames]))
            except TeacherError as error:  # a forked child can't talk; its turns will say so
                self._ahead_room.release()
                logger.debug("a batch was not read ahead: %s", error)

    def push_codec(self, codec: CodecSnapshot) -> None:
        """Sends a version of the codec before a turn needs it; returns at once.

        Nothing is sent unless a stream is open that was sent an earlier version.
        """
        background.submit(self._push_codec(codec))

    def _turn(self, frame: pb.Exchange | pb.Observe, codec: CodecSnapshot | None) -> Turn:
        frame.turn = next(self._numbers)
        if codec is not None:
            frame.codec_version = codec.version
        if isinstance(frame, pb.Exchange):
            return Turn(frame.turn, pb.ConverseRequest(exchange=frame), codec)
        return Turn(frame.turn, pb.ConverseRequest(observe=frame), codec)

    def wait(self, future: Future[Any], journey: Journey, what: str = "an answer") -> Any:
        """Waits for an answer and counts the time, if it is not there already."""
        if future.done():
            return future.result()
        with self._waiting.waiting(journey):
            return background.result_of(future, what, self._client.options.deadline_s + _GRACE_S)

    @property
    def times(self) -> WaitingTimes:
        """What callers have been blocked by, seconds; the time of several at once counts once."""
        return self._waiting.times

    @property
    def waiting_s(self) -> float:
        """Seconds that callers have been blocked by answers that had not come yet, the sum of `times`."""
        return self.times.waiting_s

    @property
    def waits_for(self) -> tuple[str, float]:
        """What blocks a caller at this moment, in words, and for how many seconds; no text where none is."""
        blocked_s = self._waiting.blocked_s
        if not blocked_s:
            return "", 0.0
        conversation = self._conversation  # once: it may be closed meanwhile
        text = conversation.obstacles.latest[0] if conversation else ""
        return text or "waiting for the teacher", blocked_s

    @property
    def num_reconnects(self) -> int:
        """How often the stream had to be opened again."""
        conversation = self._conversation
        return max(conversation.num_reconnects, 0) if conversation else 0

    def close(self) -> None:
        """Ends the conversation."""
        background.run(self._close(), "the end of a conversation", _GRACE_S)

    async def _close(self) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            await conversation.close()

    def _current(self) -> Conversation:
        """Returns the conversation; called on the background loop only."""
        if self._conversation is None:
            client, frame = self._client, pb.Open()
            frame.CopyFrom(self._open_frame)
            self._conversation = Conversation(client.replicas, frame, client.options)
            self._conversation.costs = self.costs
        return self._conversation

    async def _forward(self, turn: Turn, journey: Journey) -> ForwardAnswer:
        return await self._current().forward(turn, journey)

    async def _backward(
        self, turn: Turn, grad_values: dict[str, Tensor], journey: Journey
    ) -> GradientsAnswer:
        return await self._current().backward(turn, grad_values, journey)

    async def _read_ahead(self, turns: Sequence[Turn]) -> None:
        try:
            for turn in turns:
                if self._conversation is None:
                    break
                work = partial(self._conversation.read_ahead, turn)
                answer = await tracing.turn("observe", turn.number, work)
                if answer is not None and answer.receipt.num_cached_rows == _num_rows(turn):
                    self._num_to_skip = _NUM_SKIPPED
        except UnsupportedByTeacherError as error:
            self._num_to_skip = math.inf
            logger.debug("the teacher does not read ahead: %s", error)
        except Exception as error:  # noqa: BLE001 - nothing depends on it
            logger.debug("a batch was not read ahead: %s", error)
        finally:
            self._ahead_room.release()

    async def _push_codec(self, codec: CodecSnapshot) -> None:
        if self._conversation is not None:
            await self._conversation.push_codec(codec)


def _num_rows(turn: Turn) -> int:
    """Returns the rows of an Observe's inputs."""
    inputs = turn.frame.observe.inputs
    return len(inputs.texts) or inputs.tensors[0].tensor.shape[0]
