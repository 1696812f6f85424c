"""What is on its way: the turns of a batch, sent, whose answers are waited for only when they are needed.

Shapes: B batch, L positions of the student's sequence, D its width, K positions and M width of a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from preceptor.codec import resample
from student_client.remote import differentiable, receive
from student_client.turns import Talk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from preceptor.v1 import teacher_pb2 as pb
    from student_client.frames import TeacherInputs
    from student_client.pending_turns import PendingTurn
    from student_client.talk import TeacherTalk

__all__ = ["Answer", "PendingObservation", "PendingTalk", "SentTurns"]


@dataclass(frozen=True, eq=False)
class SentTurns:
    """The turns of one batch, in the order of its rows, in flight together.

    Attributes:
        turns: as they were sent.
        wants_gradient: whether gradients may follow.
        parameters: the teacher-side codec, by name.
        device: where values go, unless that of the message is known.
    """

    turns: Sequence[PendingTurn]
    wants_gradient: bool
    parameters: Mapping[str, Tensor]
    device: torch.device

    def values(self, message: Tensor | None = None) -> tuple[dict[str, Tensor], tuple[pb.Receipt, ...]]:
        """Waits; returns the values of the whole batch by name, and the receipts.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        if self.wants_gradient:
            return differentiable(self.turns, message, self.parameters)
        return receive(self.turns, self.device)


class Answer(Protocol):
    """The answer to a message that is on its way."""

    def values(self, message: Tensor) -> tuple[dict[str, Tensor], tuple[pb.Receipt, ...]]:
        """Waits; returns "reply", [B, K, M], to the message [B, K, M], and what its turns cost."""
        ...


class PendingObservation:
    """What the teacher sees in an input, on its way."""

    def __init__(self, sent: SentTurns) -> None:
        self._sent = sent
        self._values: dict[str, Tensor] | None = None

    def result(self) -> dict[str, Tensor]:
        """Waits for it; see `TeacherTalk.observe`.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        if self._values is None:
            self._values, _ = self._sent.values()
        return self._values


class PendingTalk:
    """A talk about a batch whose first round is on its way; further rounds start with `result`.

    Args:
        talk: the student's side, which must not change before `result`.
        hidden_states: [B, L, D] or [B, D].
        mask: [B, L], bool, or None.
        inputs: what the teacher reads of the same rows, or None.
        num_rounds: at least 1.
        through_teacher: whether gradients flow through the teacher.
    """

    def __init__(
        self,
        talk: TeacherTalk,
        hidden_states: Tensor,
        *,
        mask: Tensor | None,
        inputs: TeacherInputs | None,
        num_rounds: int,
        through_teacher: bool,
    ) -> None:
        states = hidden_states[:, None] if hidden_states.ndim == 2 else hidden_states  # noqa: PLR2004 - rank
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        self._talk = talk
        self._shape = hidden_states.shape
        self._mask = mask.bool()
        self._message_mask = talk.message_mask(self._mask)
        self._inputs = inputs
        self._num_rounds = num_rounds
        self._through_teacher = through_teacher
        self._messages: list[Tensor] = []
        self._heard: Talk | None = None
        self._sent = self._say(states)

    def result(self) -> Talk:
        """Waits for the replies of all rounds; see `TeacherTalk.forward`.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        if self._heard is None:
            self._heard = self._hear()
        return self._heard

    def _hear(self) -> Talk:
        replies: list[Tensor] = []
        receipts: list[pb.Receipt] = []
        while True:
            with self._gradients_or_not():
                values, costs = self._sent.values(self._messages[-1])
            replies.append(values["reply"].to(self._messages[-1].dtype))
            receipts.extend(costs)
            states = resample(self._talk.student_decoder(replies[-1]), self._message_mask, self._mask)
            if len(replies) == self._num_rounds:
                break
            self._sent = self._say(states)
        decoded = states.reshape(self._shape)
        return Talk(tuple(self._messages), tuple(replies), self._message_mask, decoded, tuple(receipts))

    def _say(self, states: Tensor) -> Answer:
        message = self._talk.student_encoder(states, self._mask, self._message_mask)
        self._messages.append(message)
        with self._gradients_or_not():
            return self._talk.send_message(message, self._message_mask, self._inputs)

    def _gradients_or_not(self) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(torch.is_grad_enabled() and self._through_teacher)
