"""A conversation as one autograd graph in this process, written out from the formulas, without any service.

Only the modules are shared with what is tested: the teacher's two parts and the codec's maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from preceptor.codec import Decoder, resample
from preceptor.terms import Reading
from services.teacher.families.base import States
from student_client import losses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.teacher.families.base import Teacher
    from student_client import Talk, TeacherTalk

__all__ = ["Heard", "assert_close", "gradients_of", "local_talk", "loss_of"]

SPLIT_LAYER = 1  # the toy's default


@dataclass(frozen=True)
class Heard:
    """As `student_client.Talk`."""

    messages: tuple[Tensor, ...]
    replies: tuple[Tensor, ...]
    message_mask: Tensor
    decoded: Tensor


def local_talk(
    talk: TeacherTalk,
    teacher: Teacher,
    states: Tensor,
    *,
    mask: Tensor | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    num_rounds: int = 1,
) -> Heard:
    """What `talk` should hear from `teacher`; gradients arrive in the same parameters."""
    mask = torch.ones(states.shape[:2], dtype=torch.bool) if mask is None else mask
    length = talk.spec.message_len
    message_mask = mask if length is None else torch.ones(len(mask), length, dtype=torch.bool)
    messages, replies = [], []
    for _ in range(num_rounds):
        message = talk.student_encoder.body(resample(states, mask, message_mask))
        with torch.autocast("cpu", enabled=False):
            reply = _answer(talk, teacher, message.float(), message_mask, inputs).to(message.dtype)
        states = resample(_decoded(talk.student_decoder, reply), message_mask, mask)
        messages.append(message)
        replies.append(reply)
    return Heard(tuple(messages), tuple(replies), message_mask, states)


def _answer(
    talk: TeacherTalk,
    teacher: Teacher,
    message: Tensor,
    message_mask: Tensor,
    inputs: Mapping[str, Tensor] | None,
) -> Tensor:
    """r = Enc_T(upper(Dec_T(m))), for the three ways of taking Dec_T(m) in."""
    taken_in = _decoded(talk.teacher_codec.decoder, message)
    if talk.reading is Reading.REPLACE:
        upper = teacher.upper(States(taken_in, message_mask), SPLIT_LAYER).hidden_states
        read = upper
    else:
        assert inputs is not None
        own = teacher.lower(inputs, SPLIT_LAYER)
        if talk.reading is Reading.BESIDE:
            joined = torch.cat([own.hidden_states, taken_in], 1)
            mask = torch.cat([own.mask, message_mask], 1)
            upper = teacher.upper(States(joined, mask), SPLIT_LAYER).hidden_states
            read = upper[:, own.hidden_states.shape[1] :]
        else:
            added = own.hidden_states + resample(taken_in, message_mask, own.mask)
            upper = teacher.upper(States(added, own.mask), SPLIT_LAYER).hidden_states
            read = resample(upper, own.mask, message_mask)
    reply: Tensor = talk.teacher_codec.encoder.body(read) * message_mask[..., None]
    return reply


def _decoded(decoder: Decoder, message: Tensor) -> Tensor:
    states: Tensor = decoder.body(message)
    return states if decoder.position is None else states + decoder.position


def loss_of(heard: Heard | Talk, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """A loss that reaches everything that was heard."""
    consistency = losses.message_consistency(heard.messages[-1], heard.replies[0], heard.message_mask)
    return losses.interaction(target, heard.decoded, mask) + 0.5 * consistency


def gradients_of(loss: Tensor, talk: TeacherTalk, **leaves: Tensor) -> dict[str, Tensor]:
    """Returns the gradients of a loss in a talk's parameters and in more leaves, by name."""
    named = {**dict(talk.named_parameters()), **leaves}
    gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {name: grad for name, grad in zip(named, gradients, strict=True) if grad is not None}


def assert_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compares within a tolerance relative to the largest expected value."""
    assert got.shape == expected.shape
    got, expected = got.detach().float(), expected.detach().float()
    difference = float((got - expected).abs().max())
    assert difference <= tolerance * float(expected.abs().max()) + 1e-12
