"""Conversations that teach nothing, or should not: what the gain of a real one is compared with.

`shuffled`: each row hears what the teacher said to another row of the batch. `no_teacher`: the codec alone
takes the teacher's place, r = Enc_T(gelu(Dec_T(m))): as many parameters are trained, and nobody is asked.

Shapes: B batch, K positions and M width of a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from preceptor.codec import resample
from student_client.talk import TeacherTalk

if TYPE_CHECKING:
    from torch import Tensor

    from preceptor.codec import TeacherCodec
    from preceptor.v1 import teacher_pb2 as pb
    from student_client.frames import TeacherInputs
    from student_client.pending import Answer
    from student_client.talk_config import Control

__all__ = ["ControlledTalk", "others"]


class ControlledTalk(TeacherTalk):
    """A `TeacherTalk` whose replies are not the teacher's to these rows; observations are real.

    Args:
        *arguments: of `TeacherTalk`.
        control: what is done instead.
        **named: of `TeacherTalk`.
    """

    def __init__(self, *arguments: Any, control: Control, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.control = control

    def send_message(self, message: Tensor, mask: Tensor, inputs: TeacherInputs | None) -> Answer:
        """Sends a message [B, K, M] with its mask [B, K], or answers it here."""
        if self.control == "no_teacher":
            return _OwnAnswer(self.teacher_codec, mask)
        return _AnothersAnswer(super().send_message(message, mask, inputs), mask)


@dataclass(frozen=True, eq=False)
class _OwnAnswer:
    """A reply that is computed by the student's copy of the codec."""

    codec: TeacherCodec
    mask: Tensor

    def values(self, message: Tensor) -> tuple[dict[str, Tensor], tuple[pb.Receipt, ...]]:
        """Returns the reply to a message [B, K, M] as "reply", and no receipts."""
        states = functional.gelu(self.codec.decoder(message))
        reply: Tensor = self.codec.encoder(states, self.mask, self.mask)
        return {"reply": reply.masked_fill(~self.mask[..., None], 0.0)}, ()


@dataclass(frozen=True, eq=False)
class _AnothersAnswer:
    """A teacher's answer whose rows have changed places."""

    answer: Answer
    mask: Tensor

    def values(self, message: Tensor) -> tuple[dict[str, Tensor], tuple[pb.Receipt, ...]]:
        """Returns the reply to other rows' messages [B, K, M] as "reply", and the receipts."""
        values, receipts = self.answer.values(message)
        order = others(len(message)).to(self.mask.device)
        reply = resample(values["reply"][order], self.mask[order], self.mask)
        if len(message) == 1:
            reply = reply * 0.0  # there is no other row
        return {"reply": reply.masked_fill(~self.mask[..., None], 0.0)}, receipts


def others(num_rows: int) -> Tensor:
    """Returns another row for each of some rows, all of them once, at random; [num_rows], int64.

    Each row is followed by the next one of a random circle, so that none is its own, unless it is alone.
    """
    circle = torch.randperm(num_rows)
    following = torch.empty_like(circle)
    following[circle] = circle.roll(-1)
    return following
