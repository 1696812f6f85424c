"""Who waits for which answer on one stream.

Hands every frame of a teacher to the future that waits for it. Lives on one event loop; knows no gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from preceptor import wire
from student_client.credit import Credit
from student_client.errors import TeacherError, error_of
from student_client.turns import ForwardAnswer, GradientsAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preceptor.v1 import teacher_pb2 as pb
    from preceptor.v1 import tensor_pb2 as tensors

__all__ = ["FailedTurnError", "Inbox", "awaited"]

AnswerT = TypeVar("AnswerT")


class FailedTurnError(Exception):
    """The replica answered a frame with Failed."""

    def __init__(self, failed: pb.Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class Inbox:
    """The answers that are awaited on one stream.

    Attributes:
        opened: the answer to Open.
        credit: what may be sent.
        codec_failures: codec versions that the replica refused, and why.
        draining: whether the replica asked to move.
    """

    def __init__(self) -> None:
        self.opened: asyncio.Future[pb.Opened] = asyncio.get_running_loop().create_future()
        self.credit = Credit()
        self.codec_failures: dict[int, pb.Failed] = {}
        self.draining = False
        self._forwards: dict[int, asyncio.Future[ForwardAnswer]] = {}
        self._backwards: dict[int, asyncio.Future[GradientsAnswer]] = {}
        self._parts: dict[int, list[pb.Gradients]] = {}

    @property
    def num_awaited(self) -> int:
        """Turns that await their answer."""
        return len(self._forwards) + len(self._backwards)

    def expect_forward(self, number: int) -> asyncio.Future[ForwardAnswer]:
        """Returns the future of the answer to an Exchange or Observe."""
        return _expect(self._forwards, number)

    def expect_gradients(self, number: int) -> asyncio.Future[GradientsAnswer]:
        """Returns the future of the answer to a Backward."""
        return _expect(self._backwards, number)

    def take(self, answer: pb.ConverseResponse) -> None:
        """Hands an answer to whoever waits for it; one that nobody waits for is dropped.

        Raises:
            TeacherError: the frame is none that this client knows, or ends the conversation.
        """
        match answer.WhichOneof("frame"):
            case "opened":
                self.credit.open(answer.opened.credit_bytes)
                _resolve(self.opened, answer.opened)
            case "reply":
                reply = answer.reply
                self._take_forward(reply.turn, {"reply": reply.reply}, reply.receipt)
            case "observation":
                values = {value.name: value.tensor for value in answer.observation.values}
                self._take_forward(answer.observation.turn, values, answer.observation.receipt)
            case "gradients":
                self._take_gradients(answer.gradients)
            case "failed":
                self._take_failed(answer.failed)
            case "credit":
                self.credit.grant(answer.credit.bytes)
            case "draining":
                self.draining = True
            case _:
                raise TeacherError(
                    "frame: got one that this client does not know, expected ConverseResponse's"
                )

    def fail_all(self, error: Exception) -> None:
        """Tells everybody who waits that no answer will come, and that nothing can be sent any more."""
        self.credit.close(error)
        futures: list[asyncio.Future[Any]] = [
            self.opened,
            *self._forwards.values(),
            *self._backwards.values(),
        ]
        for future in futures:
            _reject(future, error)
        if not self.opened.cancelled():
            self.opened.exception()  # nobody may be waiting; spare asyncio's complaint

    def _take_forward(self, number: int, values: dict[str, tensors.Tensor], receipt: pb.Receipt) -> None:
        future = self._forwards.get(number)
        if future is None:
            return
        try:
            decoded = {name: wire.decode(value, field=name) for name, value in values.items()}
        except wire.WireError as error:
            _reject(future, TeacherError(f"turn {number}: the teacher's answer: {error}"))
        else:
            _resolve(future, ForwardAnswer(decoded, receipt))

    def _take_gradients(self, part: pb.Gradients) -> None:
        future = self._backwards.get(part.turn)
        if future is None:
            return
        parts = self._parts.setdefault(part.turn, [])
        parts.append(part)
        if not part.complete:
            return
        del self._parts[part.turn]
        try:
            answer = _gradients_answer(parts)
        except wire.WireError as error:
            _reject(future, TeacherError(f"turn {part.turn}: the teacher's answer: {error}"))
        else:
            _resolve(future, answer)

    def _take_failed(self, failed: pb.Failed) -> None:
        if failed.turn == 0 and failed.codec_version:
            self.codec_failures[failed.codec_version] = failed
        elif failed.turn == 0:
            if self.opened.done():
                raise error_of(failed)
            _reject(self.opened, FailedTurnError(failed))
        else:
            self._parts.pop(failed.turn, None)
            future: asyncio.Future[Any] | None = self._forwards.get(failed.turn)
            future = future or self._backwards.get(failed.turn)
            if future is not None:
                _reject(future, FailedTurnError(failed))


@contextlib.contextmanager
def awaited(future: asyncio.Future[AnswerT]) -> Iterator[asyncio.Future[AnswerT]]:
    """Ends the wait for a future however the block ends, also before anybody looked at what it got."""
    try:
        yield future
    finally:
        if not future.cancel() and not future.cancelled():
            future.exception()


def _gradients_answer(parts: list[pb.Gradients]) -> GradientsAnswer:
    first, last = parts[0], parts[-1]
    message = wire.decode(first.message, field="message gradient") if first.HasField("message") else None
    codec = wire.decode_named([tensor for part in parts for tensor in part.codec], field="codec gradients")
    return GradientsAnswer(message, codec, last.receipt)


def _expect(table: dict[int, Any], number: int) -> asyncio.Future[Any]:
    if number in table:
        raise TeacherError(f"turn {number}: got it twice at the same time, expected one caller a turn")
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    table[number] = future
    future.add_done_callback(lambda _: table.pop(number, None))
    return future


def _resolve(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)


def _reject(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
