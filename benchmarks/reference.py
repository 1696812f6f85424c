"""The same conversation twice: through a served teacher, and in one process in one autograd graph.

`LocalTalk` computes by hand what `TeacherTalk` and the service compute together; only the codec modules and
the model families are shared with them. `compare` trains a small student each way, from the same weights on
the same batches, and says how far apart they are.

Shapes: B batch, L positions of the student's sequence, D its width, K positions and M width of a message.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.student import SmallStudent
from preceptor.codec import resample
from preceptor.terms import Reading
from services.teacher.families.base import States
from student_client import Talk, TeacherTalk, losses

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.student import Batch
    from services.teacher.families.base import Teacher
    from student_client.frames import TeacherInputs

__all__ = [
    "QUANTITIES",
    "LocalTalk",
    "Parity",
    "TalkingStudent",
    "compare",
    "relative_error",
    "remote_and_local",
]

QUANTITIES = ("loss", "reply", "grad_message", "grad_codec", "weights")

_LEARNING_RATE = 1e-3
_TINY = 1e-30


class LocalTalk(nn.Module):
    """What `TeacherTalk` does, with the teacher in this process and without detours.

    Args:
        teacher: the frozen teacher.
        talk: its codec modules are copied, under their names.
        split_layer: the talking layer.
    """

    def __init__(self, teacher: Teacher, talk: TeacherTalk, split_layer: int) -> None:
        super().__init__()
        self.teacher = teacher
        self.reading = talk.reading
        self.message_len = talk.spec.message_len
        self.split_layer = split_layer
        self.student_encoder = copy.deepcopy(talk.student_encoder)
        self.student_decoder = copy.deepcopy(talk.student_decoder)
        self.teacher_codec = copy.deepcopy(talk.teacher_codec)

    def forward(
        self, hidden_states: Tensor, *, mask: Tensor, inputs: TeacherInputs, num_rounds: int = 1
    ) -> Talk:
        """See `TeacherTalk.forward`; states have positions here."""
        message_mask = mask
        if self.message_len is not None:
            message_mask = torch.ones(mask.shape[0], self.message_len, dtype=torch.bool)
        messages, replies = [], []
        for _ in range(num_rounds):
            messages.append(self.student_encoder(hidden_states, mask, message_mask))
            replies.append(self._reply(messages[-1], message_mask, inputs))
            hidden_states = resample(self.student_decoder(replies[-1]), message_mask, mask)
        return Talk(tuple(messages), tuple(replies), message_mask, hidden_states, ())

    def _reply(self, message: Tensor, mask: Tensor, inputs: TeacherInputs) -> Tensor:
        """Returns Enc_T(upper(what the reading makes of Dec_T(m))), [B, K, M]."""
        split, codec = self.split_layer, self.teacher_codec
        decoded = codec.decoder(message)
        if self.reading is Reading.REPLACE:
            upper = self.teacher.upper(States(decoded, mask), split)
            reply = codec.encoder(upper.hidden_states, mask, mask)
        else:
            own = self.teacher.lower(_prepare(self.teacher, inputs), split)
            if self.reading is Reading.BESIDE:
                joined = torch.cat([own.hidden_states, decoded], dim=1)
                upper = self.teacher.upper(States(joined, torch.cat([own.mask, mask], dim=1)), split)
                at_message = upper.hidden_states[:, -mask.shape[1] :]
                reply = codec.encoder(at_message, mask, mask)
            else:
                added = own.hidden_states + resample(decoded, mask, own.mask)
                upper = self.teacher.upper(States(added, own.mask), split)
                reply = codec.encoder(upper.hidden_states, own.mask, mask)
        answer: Tensor = reply * mask[..., None]
        return answer


def _prepare(teacher: Teacher, inputs: TeacherInputs) -> dict[str, Tensor]:
    return teacher.prepare([], inputs) if isinstance(inputs, Mapping) else teacher.prepare(inputs, {})


class TalkingStudent(nn.Module):
    """A student with its codec: everything that is trained."""

    def __init__(self, student: SmallStudent, talk: TeacherTalk | LocalTalk) -> None:
        super().__init__()
        self.student = student
        self.talk = talk

    def forward(self, batch: Batch, num_rounds: int = 1) -> tuple[Tensor, Talk]:
        """Returns the loss, task + interaction + message consistency of all rounds, and what was said."""
        lower, upper, logits = self.student(batch.ids, batch.mask)
        talk: Talk = self.talk(lower, mask=batch.mask, inputs=batch.inputs, num_rounds=num_rounds)
        loss = functional.cross_entropy(logits, batch.labels)
        loss = loss + losses.interaction(upper, talk.decoded, batch.mask)
        for message, reply in zip(talk.messages, talk.replies, strict=True):
            loss = loss + losses.message_consistency(message, reply, talk.message_mask)
        return loss, talk

    def close(self) -> None:
        """Ends the conversation with a service, if there is one."""
        if isinstance(self.talk, TeacherTalk):
            self.talk.close()

    def optimizer(self) -> torch.optim.Optimizer:
        """Returns an AdamW over all that is trained."""
        return torch.optim.AdamW(self.parameters(), lr=_LEARNING_RATE)


def remote_and_local(
    address: str,
    teacher: Teacher,
    *,
    reading: Reading,
    split_layer: int,
    message_len: int | None,
    width: int = 16,
    message_dim: int = 8,
    seed: int = 0,
) -> tuple[TalkingStudent, TalkingStudent]:
    """Returns a student that talks with the service at `address`, and its twin that talks with `teacher`.

    Raises:
        ValueError: the service has another teacher.
    """
    torch.manual_seed(seed)
    talk = TeacherTalk.connect(
        address,
        student_dim=width,
        message_dim=message_dim,
        message_len=message_len,
        reading=reading,
        split_layer=split_layer,
    )
    served, here = talk.client.describe().teacher.fingerprint, teacher.facts.fingerprint
    if served != here:
        raise ValueError(f"fingerprint: got {served} from {address}, expected {here}")
    student = SmallStudent(width, num_heads=4)
    local = TalkingStudent(copy.deepcopy(student), LocalTalk(teacher, talk, split_layer))
    return TalkingStudent(student, talk), local


@dataclass(frozen=True)
class Parity:
    """How far two sides are apart, as relative errors.

    Attributes:
        errors: by quantity: "loss" of all steps; "reply", "grad_message" and "grad_codec" (the gradients of
            all codec parameters) of the first step; "weights" of student and codec after the last step.
        weight_change: what training changed, relative too, in the parameter that changed least: the scale
            against which to read the error of the weights.
    """

    errors: dict[str, float]
    weight_change: float

    @property
    def largest(self) -> float:
        """The largest error."""
        return max(self.errors.values())


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Returns max |got - expected| / max |expected|, infinity if either is not finite.

    Raises:
        ValueError: the shapes differ.
    """
    if got.shape != expected.shape:
        raise ValueError(f"got shape {list(got.shape)}, expected {list(expected.shape)}")
    scale = expected.abs().max().clamp_min(_TINY)
    error = float((got - expected).abs().max() / scale)
    return error if math.isfinite(error) else math.inf


def compare(
    remote: TalkingStudent,
    local: TalkingStudent,
    batches: Sequence[Batch],
    *,
    num_rounds: int,
    num_steps: int,
) -> Parity:
    """Trains both on the same batches, at the same time, and returns how far apart they are."""
    start = [parameter.detach().clone() for parameter in local.parameters()]
    # A new thread learns what `torch.set_num_threads` was told only when torch asks.
    with ThreadPoolExecutor(2, initializer=torch.get_num_threads) as pool:
        futures = [pool.submit(_train, side, batches, num_rounds, num_steps) for side in (remote, local)]
        got, expected = (future.result() for future in futures)
    errors = {name: max(_relative_errors(got[name], expected[name])) for name in QUANTITIES}
    return Parity(errors, min(_relative_errors(start, expected["weights"])))


def _relative_errors(got: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    return [relative_error(first, second) for first, second in zip(got, expected, strict=True)]


def _train(
    side: TalkingStudent, batches: Sequence[Batch], num_rounds: int, num_steps: int
) -> dict[str, list[Tensor]]:
    """Returns the tensors that are compared, by quantity."""
    optimizer = side.optimizer()
    seen: dict[str, list[Tensor]] = {"loss": []}
    for step in range(num_steps):
        optimizer.zero_grad()
        loss, talk = side(batches[step % len(batches)], num_rounds)
        for message in talk.messages:
            message.retain_grad()
        loss.backward()
        seen["loss"].append(loss.detach())
        if step == 0:
            seen["reply"] = [reply.detach() for reply in talk.replies]
            seen["grad_message"] = _gradients(talk.messages)
            seen["grad_codec"] = _gradients(side.talk.parameters())
        optimizer.step()
    seen["weights"] = [parameter.detach() for parameter in side.parameters()]
    return seen


def _gradients(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns copies of gradients, none of them zero throughout."""
    gradients = [
        torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone() for tensor in tensors
    ]
    for gradient in gradients:
        if not bool(gradient.any()):
            raise ValueError(f"gradient: got nothing but 0 for shape {list(gradient.shape)}")
    return gradients
