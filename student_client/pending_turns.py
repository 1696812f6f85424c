"""Turns of a conversation that are on their way, and their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from student_client import background, tracing
from student_client.times import Journey

if TYPE_CHECKING:
    from concurrent.futures import Future

    from torch import Tensor

    from preceptor.compression import WireType
    from student_client.client import ConversationHandle
    from student_client.turns import ForwardAnswer, GradientsAnswer, Turn

__all__ = ["PendingGradients", "PendingTurn"]


@dataclass(frozen=True, eq=False)
class PendingGradients:
    """The gradients of a turn, on their way."""

    future: Future[GradientsAnswer]
    journey: Journey


class PendingTurn:
    """A turn on its way."""

    def __init__(
        self, handle: ConversationHandle, turn: Turn, future: Future[ForwardAnswer], journey: Journey
    ) -> None:
        self._handle = handle
        self._turn = turn
        self._future: Future[ForwardAnswer] | None = future
        self._context = tracing.here()
        self._journey = journey

    def result(self) -> ForwardAnswer:
        """Waits for what the turn returns, and gives it away.

        Autograd keeps the turn as long as what it returned: if the turn kept that too, both would stay.

        Raises:
            RuntimeError: it was given away before.
            TeacherError: see `student_client.errors`.
        """
        if self._future is None:
            raise RuntimeError(f"turn {self._turn.number}: what it returned was taken before")
        answer: ForwardAnswer = self._handle.wait(self._future, self._journey, f"turn {self._turn.number}")
        self._future = None
        return answer

    def start_backward(self, grad_values: dict[str, Tensor]) -> PendingGradients:
        """Sends the gradients of what the turn returned without waiting; see `backward`."""
        journey = Journey()
        work = partial(self._handle._backward, self._turn, grad_values, journey)  # noqa: SLF001 - one unit
        sent = background.submit(tracing.turn("backward", self._turn.number, work, self._context))
        return PendingGradients(sent, journey)

    def backward(self, grad_values: dict[str, Tensor]) -> GradientsAnswer:
        """Sends the gradients of what the turn returned and waits for those of what it was computed from.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        return self.gradients(self.start_backward(grad_values))

    def gradients(self, sent: PendingGradients) -> GradientsAnswer:
        """Waits for what `start_backward` returned.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        answer: GradientsAnswer = self._handle.wait(
            sent.future, sent.journey, f"gradients of turn {self._turn.number}"
        )
        return answer

    @property
    def gradient_type(self) -> WireType:
        """The type in which the turn's gradients travel."""
        return self._handle.gradient_type
