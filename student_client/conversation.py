"""One conversation, over as many streams as it takes.

Keeps a stream to some replica, opens another one when it breaks or drains, and sends again what has no
answer yet. Since the service keeps nothing that can be lost, a turn that is replayed gets the same answer.
Lives on the background loop; `client` is its synchronous face.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, TypeVar

import grpc

from preceptor.v1 import teacher_pb2 as pb
from student_client.activity import Activity
from student_client.backoff import Backoff
from student_client.channel import with_hint
from student_client.costs import Costs
from student_client.errors import (
    DeadlineExceededError,
    FrameTooLargeError,
    OverloadedError,
    TeacherError,
    TeacherUnavailableError,
    error_of,
)
from student_client.inbox import FailedTurnError
from student_client.replicas import ReplicaFinder
from student_client.stream import Stream, StreamLostError
from student_client.times import Journey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from torch import Tensor

    from student_client.options import ClientOptions
    from student_client.turns import CodecSnapshot, ForwardAnswer, GradientsAnswer, Turn

__all__ = ["Conversation"]

logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

_REPLAYED = (pb.REASON_TURN_UNKNOWN, pb.REASON_CODEC_UNKNOWN)
_LINGERS_S = 1.0  # between the attempts at one turn
_MAX_SEARCH_PAUSE_S = 1.0  # a replica that came back is found again soon

# Its own generator: what the network does must not change the random numbers of the training loop.
_random = random.Random()


class Conversation:
    """Talks to a teacher that has one or more replicas.

    Args:
        replicas: `host:port` of replicas or directories to ask for them.
        open_frame: what is agreed with every replica.
        options: deadlines and back-off.

    Attributes:
        num_reconnects: how often another stream had to be opened.
        obstacles: why turns are not on their way just now.
        costs: what it has cost so far.
    """

    def __init__(self, replicas: tuple[str, ...], open_frame: pb.Open, options: ClientOptions) -> None:
        self._open_frame, self._options = open_frame, options
        self._stream: Stream | None = None
        self._retired: list[Stream] = []
        self._opening = asyncio.Lock()
        self._is_closed = False
        self._finder = ReplicaFinder(_random.sample(replicas, len(replicas)), options)
        self._addresses = ", ".join(replicas)
        self._search_problem: TeacherError = self._not_opened("")
        self._full = Journey()  # while no replica had room for the conversation
        self.num_reconnects = -1  # the first stream is none
        self.obstacles, self.costs = Activity(lingers_s=_LINGERS_S), Costs()

    async def forward(self, turn: Turn, journey: Journey | None = None) -> ForwardAnswer:
        """Sends an Exchange or Observe until it is answered; `journey` is told how it goes.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        what = f"turn {turn.number}"
        journey = journey or Journey()
        return await self._until_answered(turn, what, journey, lambda stream: stream.forward(turn, journey))

    async def backward(
        self, turn: Turn, grad_values: dict[str, Tensor], journey: Journey | None = None
    ) -> GradientsAnswer:
        """Sends the gradients of a turn, and the turn itself where it is not known, until answered.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        what = f"gradients of turn {turn.number}"
        journey = journey or Journey()
        return await self._until_answered(
            turn, what, journey, lambda stream: stream.backward(turn, grad_values, journey)
        )

    async def close(self) -> None:
        """Ends all streams; who still waits is told so."""
        self._is_closed = True
        streams = [*self._retired, *([self._stream] if self._stream else [])]
        self._stream, self._retired = None, []
        for stream in streams:
            await stream.close()

    async def read_ahead(self, turn: Turn) -> ForwardAnswer | None:
        """Has an Observe that reads ahead served, once; returns None if there is no stream or no room on it.

        Raises:
            TeacherError: it failed.
        """
        stream = await self._open_stream()
        try:
            return None if stream is None else await stream.read_ahead(turn)
        except FailedTurnError as error:
            raise error_of(error.failed) from None
        except StreamLostError as error:
            raise TeacherUnavailableError(str(error)) from None

    async def push_codec(self, codec: CodecSnapshot) -> None:
        """Sends a version of the codec before a turn needs it, if a stream is open and was sent another.

        What goes wrong here is told to the turn that needs it.
        """
        stream = await self._open_stream()
        if stream is not None:
            with contextlib.suppress(StreamLostError, FrameTooLargeError):
                await stream.push_codec(codec)

    async def _until_answered(
        self, turn: Turn, what: str, journey: Journey, attempt: Callable[[Stream], Awaitable[AnswerT]]
    ) -> AnswerT:
        options = self._options
        deadline_s = time.monotonic() + options.deadline_s
        backoff = Backoff(options.initial_backoff_s, options.max_backoff_s, deadline_s)
        problem: TeacherError = DeadlineExceededError(f"{what}: no answer within {options.deadline_s:g} s")
        while True:
            stream = await self._usable_stream(deadline_s, journey)
            try:
                async with _until(deadline_s):
                    return await attempt(stream)
            except TimeoutError:
                _tell(stream, turn, what, problem)
                raise problem from None
            except StreamLostError as error:
                self._raise_if_final(error)
                if self._is_closed:
                    raise TeacherUnavailableError(str(error)) from None
                problem = DeadlineExceededError(f"turn {turn.number}: {error}")
            except FailedTurnError as error:
                problem = error_of(error.failed)
                if error.failed.reason in _REPLAYED:
                    _raise(stream.codec_failure(turn.codec))
                    stream.forget(error.failed.reason, turn)
                elif not isinstance(problem, OverloadedError):
                    _tell(stream, turn, what, problem)
                    raise problem from None
            finally:
                if stream in self._retired:
                    await self._close_retired()
            _tell(stream, turn, what, problem)
            with self._obstacle(problem, journey):
                await backoff.pause(problem, problem.retry_after_s)

    @contextlib.contextmanager
    def _obstacle(self, problem: TeacherError, journey: Journey) -> Iterator[None]:
        """Tells whoever looks, and the journey, that there is no room, if so, while open."""
        if not isinstance(problem, OverloadedError):
            yield
            return
        when = f"; again in {problem.retry_after_s:.1f} s" if problem.retry_after_s else ""
        with self.obstacles.now(f"no room at the teacher: {problem}{when}"), journey.without_room():
            yield

    async def _open_stream(self) -> Stream | None:
        """Returns the stream in use, after one that is being opened is; None if there is none."""
        async with self._opening:
            return self._stream if self._stream is not None and self._stream.usable else None

    async def _usable_stream(self, deadline_s: float, journey: Journey) -> Stream:
        """Returns the stream in use, or opens one at the first replica that takes it.

        Raises:
            TeacherError: none did by the deadline; says what came of the last attempt.
        """
        try:
            async with _until(deadline_s), self._opening:
                if self._stream is None or not self._stream.usable:
                    lost = None if self._stream is None else self._stream.lost
                    self._search_problem = self._not_opened("" if lost is None else f"; before that, {lost}")
                    with self.obstacles.now(self._search_text()):
                        await self._put_aside()
                        self._stream = await self._search(deadline_s)
                    self.num_reconnects += 1
                return self._stream
        except TimeoutError:
            raise self._search_problem from None
        finally:
            journey.share(self._full)

    def _search_text(self) -> str:
        if self._stream is None:
            return f"connecting to {self._addresses}"
        why = self._stream.lost or f"{self._stream.target} takes no more turns"
        return f"reconnecting to {self._addresses}: {why}"

    async def _put_aside(self) -> None:
        """Lets the stream in use answer what it was asked, if there is one, and no more."""
        if self._stream is not None:
            self._retired.append(self._stream)
            self._stream = None
        await self._close_retired()

    async def _search(self, deadline_s: float) -> Stream:
        options = self._options
        pause_s = min(options.max_backoff_s, _MAX_SEARCH_PAUSE_S)
        backoff = Backoff(options.initial_backoff_s, pause_s, deadline_s)
        self._full = Journey()
        while True:
            retry_after_s = 0.0
            for target in await self._finder.find(opens_conversation=True):
                try:
                    return await self._open_at(target)
                except (StreamLostError, FailedTurnError) as error:
                    self._search_problem = problem = self._problem_of_opening(error)
                    if isinstance(problem, OverloadedError):
                        retry_after_s = max(retry_after_s, problem.retry_after_s)
            with self._obstacle(self._search_problem, self._full):
                await backoff.pause(self._search_problem, retry_after_s)

    async def _open_at(self, target: str) -> Stream:
        self._raise_if_closed()
        stream = Stream(target, self._options, self.costs)
        try:
            opened = await stream.start(self._open_frame)
            self._raise_if_closed()  # nobody else would end this stream
        except BaseException:
            await stream.close()
            raise
        self._open_frame.expected_fingerprint = opened.teacher.fingerprint
        return stream

    async def _close_retired(self) -> None:
        """Closes the streams put aside that nobody waits on any more."""
        while idle := next((stream for stream in self._retired if stream.num_pending == 0), None):
            self._retired.remove(idle)
            await idle.close()

    def _problem_of_opening(self, error: StreamLostError | FailedTurnError) -> TeacherError:
        """Returns the error to raise once the deadline has passed; raises what can't get better."""
        if isinstance(error, StreamLostError):
            self._raise_if_final(error)
            return self._not_opened(f"; the last one: {with_hint(str(error), self._options)}")
        problem = error_of(error.failed)
        if not isinstance(problem, OverloadedError | TeacherUnavailableError):
            raise problem
        return problem

    def _not_opened(self, why: str) -> TeacherError:
        return TeacherUnavailableError(f"{self._addresses}: no replica opened a conversation in time{why}")

    def _raise_if_closed(self) -> None:
        if self._is_closed:
            raise TeacherUnavailableError("the conversation was closed by the student")

    def _raise_if_final(self, error: StreamLostError) -> None:
        """Raises what another attempt can't mend."""
        _raise(self._finder.refusal(error.code, str(error)))
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in str(error):
            raise FrameTooLargeError(str(error)) from None


def _until(deadline_s: float) -> asyncio.Timeout:
    """Ends what is done in it at a time on `time.monotonic`."""
    return asyncio.timeout(deadline_s - time.monotonic())


def _tell(stream: Stream, turn: Turn, what: str, problem: TeacherError) -> None:
    """Logs that a turn was not answered, under the names that the service's own logs have."""
    where = {"conversation": stream.conversation_id, "turn": turn.number, "replica": stream.target}
    logger.info(
        "conversation %s at %s, %s: %s", where["conversation"], where["replica"], what, problem, extra=where
    )


def _raise(error: TeacherError | None) -> None:
    if error is not None:
        raise error
