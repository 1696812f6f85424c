"""What a run minimises: a student, its conversation and the weighted sum of their losses, as one module.

One module, so that data-parallel wrappers average the codec's gradients like the student's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from preceptor.codec import resample
from preceptor.terms import ObservationKind
from student_client import losses
from student_client.client import TeacherClient
from student_client.talk import MAX_FRAME_BYTES, TeacherTalk
from student_client.taps import Taps

if TYPE_CHECKING:
    from student_client.config import TrainConfig
    from student_client.data import Batch
    from student_client.pending import PendingObservation, PendingTalk
    from student_client.talk import Talk

__all__ = ["Objective", "Outcome", "build_objective"]


@dataclass(frozen=True)
class Outcome:
    """The result of one forward pass.

    Attributes:
        loss: the weighted sum, a scalar.
        parts: each loss by its name, unweighted, detached.
        logits: the student's outputs, [B, C].
    """

    loss: Tensor
    parts: dict[str, Tensor]
    logits: Tensor


class Objective(nn.Module):
    """A student and what it is trained by.

    Args:
        config: weights and switches.
        student: the model that is trained.
        talk: its conversation, or None if no loss needs a teacher.
        hint_map: the student's width to the teacher's, for hints, or None.
    """

    def __init__(
        self, config: TrainConfig, student: nn.Module, talk: TeacherTalk | None, hint_map: nn.Linear | None
    ) -> None:
        super().__init__()
        self.config = config
        self.student = student
        self.talk = talk
        self.hint_map = hint_map
        self.teacher_fingerprint = ""
        paths = {"lower": config.student.lower, "upper": config.student.upper}
        self._taps = Taps(student, {name: path for name, path in paths.items() if path})

    def forward(self, batch: Batch, ahead: Batch | None = None) -> Outcome:
        """Computes the loss of a batch.

        All that is asked of the teacher is sent before any answer is waited for, and what does not depend on
        the student's states before the student computes them.

        Args:
            batch: the examples.
            ahead: the next ones, which the teacher may read in the meantime.

        Raises:
            TeacherError: the conversation failed; see `student_client.errors`.
        """
        early = self._start_observe(batch)
        logits = self.student(**batch.student)
        parts = {"task": self._task(logits, batch.labels)}
        if self.talk is not None:
            seen = early or self._start_observe(batch, after_student=True)
            heard = self._start_talk(self.talk, batch)
            if ahead is not None:
                self.talk.read_ahead(ahead.teacher, self._kinds())
            parts.update(self._losses(self.talk, batch, logits, seen.result() if seen else {}, heard))
        weights = self.config.losses.model_dump()
        loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        self._taps.clear()
        return Outcome(loss, {name: value.detach() for name, value in parts.items()}, logits)

    def predict(self, batch: Batch) -> Tensor:
        """Returns the student's outputs, [B, C]; it is alone."""
        logits: Tensor = self.student(**batch.student)
        self._taps.clear()
        return logits

    def _task(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.data.task == "regression":
            return functional.mse_loss(logits.reshape(labels.shape), labels)
        return functional.cross_entropy(logits, labels)

    def _kinds(self) -> set[ObservationKind]:
        """Returns all that the losses need of the teacher's own reading."""
        weights, kinds = self.config.losses, set()
        if weights.message and self.config.talk.message_target == "models":
            kinds |= {ObservationKind.LOWER_MESSAGE, ObservationKind.UPPER_MESSAGE}
        if weights.state:
            kinds.add(ObservationKind.STATE_CONSISTENCY)
        if weights.kd:
            kinds.add(ObservationKind.LOGITS)
        if weights.hint:
            kinds.add(ObservationKind.POOLED_STATE)
        return kinds

    def _start_observe(self, batch: Batch, *, after_student: bool = False) -> PendingObservation | None:
        """Asks for what the losses need; None if they need nothing, or the student has to go first."""
        kinds = self._kinds()
        if self.talk is None or not kinds:
            return None
        message_mask = None
        if self.config.losses.talks:
            if not after_student and self.config.student.mask is None:
                return None  # the states that the student has yet to compute say what the mask is
            message_mask = self.talk.message_mask(self._mask(batch))
        return self.talk.start_observe(batch.teacher, kinds, message_mask=message_mask)

    def _start_talk(self, talk: TeacherTalk, batch: Batch) -> PendingTalk | None:
        """Sends the student's message, if a loss needs the reply."""
        config, weights = self.config.talk, self.config.losses
        if not (
            weights.interact or weights.grounded or (weights.message and config.message_target == "turn")
        ):
            return None
        return talk.start(
            self._taps["lower"],
            mask=self._mask(batch),
            inputs=batch.teacher,
            num_rounds=config.num_rounds,
            through_teacher=config.through_teacher,
        )

    def _losses(
        self,
        talk: TeacherTalk,
        batch: Batch,
        logits: Tensor,
        seen: dict[str, Tensor],
        heard: PendingTalk | None,
    ) -> dict[str, Tensor]:
        """Returns all losses but the task's."""
        parts = {}
        if heard is not None:
            parts.update(self._heard(batch, heard.result()))
        if "lower_message" in seen:
            parts["message"] = self._message_of_models(talk, batch, seen)
        if "state_consistency" in seen:
            parts["state"] = self._state(talk, batch, seen)
        return {**parts, **self._told(logits, batch, seen)}

    def _told(self, logits: Tensor, batch: Batch, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the losses of plain distillation."""
        parts = {}
        if "logits" in seen:
            temperature = self.config.losses.temperature
            parts["kd"] = losses.logits_distillation(logits, seen["logits"], temperature)
        if "pooled_state" in seen and self.hint_map is not None:
            mask = self._mask(batch)
            one = torch.ones(mask.shape[0], 1, dtype=torch.bool, device=mask.device)
            pooled = resample(_sequence(self._taps["upper"]), mask, one)[:, 0]
            parts["hint"] = losses.hint(self.hint_map(pooled), seen["pooled_state"])
        return parts

    def _heard(self, batch: Batch, heard: Talk) -> dict[str, Tensor]:
        """Returns the losses of what the student heard."""
        config, weights = self.config.talk, self.config.losses
        upper, parts = self._taps["upper"], {}
        decoded = heard.decoded.detach() if config.detach_reply else heard.decoded
        mask = None if upper.ndim == 2 else self._mask(batch)  # noqa: PLR2004 - rank
        parts["interact"] = losses.interaction(upper, decoded, mask)
        if weights.grounded:
            with self._taps.replaced("upper", heard.decoded):
                parts["grounded"] = self._task(self.student(**batch.student), batch.labels)
        if weights.message and config.message_target == "turn":
            parts["message"] = self._message_of_turn(heard)
        return parts

    def _message_of_turn(self, heard: Talk) -> Tensor:
        rounds = [
            losses.message_consistency(
                message, reply, heard.message_mask, detach_other=self.config.talk.detach_teacher
            )
            for message, reply in zip(heard.messages, heard.replies, strict=True)
        ]
        return torch.stack(rounds).mean()

    def _message_of_models(self, talk: TeacherTalk, batch: Batch, seen: dict[str, Tensor]) -> Tensor:
        mask = self._mask(batch)
        message_mask = talk.message_mask(mask)
        ends = [
            losses.message_consistency(
                talk.student_encoder(_sequence(self._taps[tap]), mask, message_mask),
                seen[name],
                message_mask,
                detach_other=self.config.talk.detach_teacher,
            )
            for tap, name in (("lower", "lower_message"), ("upper", "upper_message"))
        ]
        return torch.stack(ends).sum()

    def _state(self, talk: TeacherTalk, batch: Batch, seen: dict[str, Tensor]) -> Tensor:
        mask = self._mask(batch)
        message_mask = talk.message_mask(mask)
        own = [
            losses.state_consistency(
                talk.student_encoder, talk.student_decoder, _sequence(self._taps[tap]), mask, message_mask
            )
            for tap in ("lower", "upper")
        ]
        return torch.stack(own).mean() + seen["state_consistency"].mean()

    def _mask(self, batch: Batch) -> Tensor:
        """Returns the valid positions of the student's states, [B, L]."""
        if self.config.student.mask is not None:
            return batch.student[self.config.student.mask].bool()
        states = _sequence(self._taps["upper"])
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)


def _sequence(states: Tensor) -> Tensor:
    """Gives [B, D] states a position axis."""
    return states[:, None] if states.ndim == 2 else states  # noqa: PLR2004 - rank


def build_objective(config: TrainConfig, student: nn.Module, example: Batch) -> Objective:
    """Builds the conversation that fits a student and its teacher.

    Args:
        config: of the run.
        student: the model that is trained.
        example: some examples; the student runs on them once to see how wide its states are.

    Raises:
        ValueError: the states that are talked about differ in width.
        TeacherError: the teacher does not say what it is.
    """
    if config.teacher is None or not config.losses.needs_teacher:
        return Objective(config, student, None, None)
    client = TeacherClient(config.teacher.address, config.teacher.options)
    description = client.describe()
    student_dim = _state_width(config, student, example)
    teacher_dim = description.teacher.hidden_size
    talk = TeacherTalk(
        client,
        config.talk.codec,
        student_dim=student_dim,
        teacher_dim=teacher_dim,
        reading=config.talk.reading,
        split_layer=config.talk.split_layer,
        compression=config.talk.compression,
        deterministic=config.talk.deterministic,
        tenant=config.teacher.tenant or config.name,
        micro_batch_size=config.talk.micro_batch_size,
        max_frame_bytes=min(MAX_FRAME_BYTES, description.limits.max_frame_bytes),
        limits=description.limits,
    )
    talk.requires_grad_(config.losses.talks)
    hint_map = nn.Linear(student_dim, teacher_dim) if config.losses.hint else None
    objective = Objective(config, student, talk, hint_map)
    objective.teacher_fingerprint = description.teacher.fingerprint
    return objective


def _state_width(config: TrainConfig, student: nn.Module, example: Batch) -> int:
    """Returns the width of the tapped states; 1 if none is tapped, since then none is encoded."""
    paths = {"lower": config.student.lower, "upper": config.student.upper}
    taps = Taps(student, {name: path for name, path in paths.items() if path})
    was_training = student.training
    with torch.no_grad():
        student.eval()(**example.student)
    student.train(was_training)
    widths = {path: taps[name].shape[-1] for name, path in paths.items() if path}
    taps.remove()
    if len(set(widths.values())) > 1:
        raise ValueError(f"student.lower, student.upper: got states of widths {widths}, expected equal ones")
    return next(iter(widths.values()), 1)
