"""One conversation, over as many streams as it takes.

Keeps a stream to some replica, opens another one when it breaks or drains, and sends again what has no
answer yet. Since the service keeps nothing that can be lost, a turn that is replayed gets the same answer.
Lives on the background loop; `client` is its synchronous face.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from typing import TYPE_CHECKING, TypeVar

import grpc

from preceptor.v1 import teacher_pb2 as pb
from student_client.errors import (
    AccessError,
    DeadlineExceededError,
    FrameTooLargeError,
    OverloadedError,
    TeacherError,
    TeacherUnavailableError,
    error_of,
)
from student_client.inbox import FailedTurnError
from student_client.stream import Stream, StreamLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from torch import Tensor

    from student_client.options import ClientOptions
    from student_client.turns import ForwardAnswer, GradientsAnswer, Turn

__all__ = ["Conversation"]

AnswerT = TypeVar("AnswerT")

_REPLAYED = (pb.REASON_TURN_UNKNOWN, pb.REASON_CODEC_UNKNOWN)

# Its own generator: what the network does must not change the random numbers of the training loop.
_random = random.Random()


class Conversation:
    """Talks to a teacher that has one or more replicas.

    Args:
        replicas: `host:port` of each.
        open_frame: what is agreed with every replica.
        options: deadlines and back-off.

    Attributes:
        num_reconnects: how often another stream had to be opened.
    """

    def __init__(self, replicas: tuple[str, ...], open_frame: pb.Open, options: ClientOptions) -> None:
        self._replicas = replicas
        self._open_frame = open_frame
        self._options = options
        self._stream: Stream | None = None
        self._retired: list[Stream] = []
        self._opening = asyncio.Lock()
        self._next_replica = itertools.cycle(_random.sample(replicas, len(replicas)))
        self.num_reconnects = -1  # the first stream is none

    async def forward(self, turn: Turn) -> ForwardAnswer:
        """Sends an Exchange or Observe until it is answered.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        return await self._until_answered(turn, lambda stream: stream.forward(turn))

    async def backward(self, turn: Turn, grad_values: dict[str, Tensor]) -> GradientsAnswer:
        """Sends the gradients of a turn, and the turn itself where it is not known, until answered.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        return await self._until_answered(turn, lambda stream: stream.backward(turn, grad_values))

    async def close(self) -> None:
        """Ends all streams."""
        streams = [*self._retired, *([self._stream] if self._stream else [])]
        self._stream, self._retired = None, []
        for stream in streams:
            await stream.close()

    async def _until_answered(self, turn: Turn, attempt: Callable[[Stream], Awaitable[AnswerT]]) -> AnswerT:
        deadline_s = time.monotonic() + self._options.deadline_s
        pause_s = self._options.initial_backoff_s
        while True:
            stream = await self._usable_stream(deadline_s)
            try:
                return await attempt(stream)
            except StreamLostError as error:
                _raise_if_final(error)
                problem: TeacherError = DeadlineExceededError(f"turn {turn.number}: {error}")
            except FailedTurnError as error:
                problem = error_of(error.failed)
                if error.failed.reason in _REPLAYED:
                    _raise(stream.codec_failure(turn.codec))
                    stream.forget(error.failed.reason, turn)
                elif isinstance(problem, OverloadedError):
                    pause_s = max(pause_s, problem.retry_after_s)
                else:
                    raise problem from None
            pause_s = await self._pause(pause_s, deadline_s, problem)

    async def _usable_stream(self, deadline_s: float) -> Stream:
        """Returns the stream in use, or opens one at the next replica that takes it."""
        async with self._opening:
            if self._stream is not None and self._stream.usable:
                return self._stream
            if time.monotonic() > deadline_s:  # spent waiting for another turn's attempts
                raise TeacherUnavailableError("no replica opened a conversation in time")
            await self._retire()
            pause_s = self._options.initial_backoff_s
            while True:
                stream = Stream(next(self._next_replica), self._options)
                try:
                    opened = await stream.start(self._open_frame)
                except (StreamLostError, FailedTurnError) as error:
                    await stream.close()
                    problem = _problem_of_opening(error)
                else:
                    self._open_frame.expected_fingerprint = opened.teacher.fingerprint
                    self._stream = stream
                    self.num_reconnects += 1
                    return stream
                pause_s = await self._pause(pause_s, deadline_s, problem)

    async def _retire(self) -> None:
        """Puts the stream in use aside; closes those that nobody waits on any more."""
        if self._stream is not None:
            self._retired.append(self._stream)
            self._stream = None
        for stream in [stream for stream in self._retired if stream.num_pending == 0]:
            self._retired.remove(stream)
            await stream.close()

    async def _pause(self, pause_s: float, deadline_s: float, problem: TeacherError) -> float:
        """Waits with jitter, or raises `problem` if the deadline comes first; returns the next pause."""
        wait_s = pause_s * _random.uniform(0.5, 1.0)
        if time.monotonic() + wait_s > deadline_s:
            raise problem
        await asyncio.sleep(wait_s)
        return min(pause_s * 2, self._options.max_backoff_s)


def _problem_of_opening(error: StreamLostError | FailedTurnError) -> TeacherError:
    """Returns the error to raise once the deadline has passed; raises what can't get better."""
    if isinstance(error, StreamLostError):
        _raise_if_final(error)
        return TeacherUnavailableError(f"no replica opened a conversation in time; the last one: {error}")
    problem = error_of(error.failed)
    if not isinstance(problem, OverloadedError | TeacherUnavailableError):
        raise problem
    return problem


def _raise_if_final(error: StreamLostError) -> None:
    """Raises what another attempt can't mend."""
    if error.code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        raise AccessError(str(error)) from None
    if error.code is grpc.StatusCode.UNIMPLEMENTED:
        raise TeacherError(f"{error}: no teacher is served there, or one of another version") from None
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in str(error):
        raise FrameTooLargeError(str(error)) from None


def _raise(error: TeacherError | None) -> None:
    if error is not None:
        raise error
