"""What a run minimises: a student, its conversation and the weighted sum of their losses, as one module.

One module, so that data-parallel wrappers average the codec's gradients like the student's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from student_client import losses
from student_client.activity import Activity
from student_client.batches import are_labels
from student_client.connecting import connect
from student_client.preparation import IGNORED
from student_client.students import logits_of
from student_client.taps import Taps

if TYPE_CHECKING:
    from student_client.batches import Batch
    from student_client.config import StudentConfig, TrainConfig
    from student_client.talk import TeacherTalk
    from student_client.talking import TalkingLosses

__all__ = [
    "DivergedError",
    "Objective",
    "Outcome",
    "StepSize",
    "build_objective",
    "num_tokens",
    "state_width",
    "tapped",
]

_OF_LABELS = ("task", "grounded")  # means over labels; all others are over rows


class DivergedError(ArithmeticError):
    """A loss is not finite: whatever is trained by it is lost."""


@dataclass(frozen=True)
class Outcome:
    """The result of one forward pass.

    Attributes:
        loss: the weighted sum, a scalar.
        task_loss: the part of it that is a mean over labels, of `num_tokens` of them.
        talk_loss: the rest, which is a mean over rows.
        parts: each loss by its name, unweighted, detached.
        logits: the student's outputs, [B, C] or [B, L, C].
        num_tokens: labels: of rows, or of positions.
    """

    loss: Tensor
    task_loss: Tensor
    talk_loss: Tensor
    parts: dict[str, Tensor]
    logits: Tensor
    num_tokens: int

    def losses(self, of_labels: float = 1.0, of_rows: float = 1.0) -> dict[str, float]:
        """Returns "loss", the weighted sum, and each loss by its name.

        Args:
            of_labels: the part of a batch's labels that this is of; its means over labels count for as much.
            of_rows: the part of its rows, for the other means.

        Raises:
            DivergedError: one is not finite.
        """
        losses = {"loss": self.loss.item(), **{name: part.item() for name, part in self.parts.items()}}
        if not all(math.isfinite(value) for value in losses.values()):
            told = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            raise DivergedError(f"losses: got {told}, expected finite numbers; lower the learning rate")
        if of_labels == of_rows == 1:
            return losses
        shares = {name: of_labels if name in _OF_LABELS else of_rows for name in self.parts}
        whole = self.task_loss.item() * of_labels + self.talk_loss.item() * of_rows
        return {"loss": whole, **{name: losses[name] * share for name, share in shares.items()}}


class Objective(nn.Module):
    """A student and what it is trained by.

    Args:
        config: weights and switches.
        student: the model that is trained.
        taps: reads its states.
        talking: the losses that need a teacher, or None if there are none.
    """

    def __init__(
        self, config: TrainConfig, student: nn.Module, taps: Taps, talking: TalkingLosses | None
    ) -> None:
        super().__init__()
        self.config = config
        self.student = student
        self.talking = talking
        self._taps = taps

    @property
    def talk(self) -> TeacherTalk | None:
        """The conversation; None if no loss needs a teacher."""
        return None if self.talking is None else self.talking.talk

    @property
    def teacher_fingerprint(self) -> str:
        """Of the teacher's weights; empty without one."""
        return "" if self.talking is None else self.talking.teacher_fingerprint

    @property
    def teacher_name(self) -> str:
        """The teacher's name; empty without one."""
        return "" if self.talking is None else self.talking.teacher_name

    def forward(self, batch: Batch, ahead: Batch | None = None) -> Outcome:
        """Computes the loss of a batch.

        Args:
            batch: the examples.
            ahead: the next ones, which the teacher may read in the meantime.

        Raises:
            TeacherError: the conversation failed; see `student_client.errors`.
        """
        mask = None if self.config.student.mask is None else batch.student[self.config.student.mask]
        begun = None if self.talking is None else self.talking.begin(batch.teacher, mask)
        logits = logits_of(self.student(**batch.student))
        parts = {"task": self._task(logits, batch.labels)}
        if batch.told is not None:
            temperature = self.config.losses.temperature
            parts["kd"] = losses.logits_distillation(logits, batch.told, temperature)
        if self.talking is not None:
            parts |= self.talking.finish(
                begun,
                batch.teacher,
                mask,
                logits,
                lambda: self._task(logits_of(self.student(**batch.student)), batch.labels),
                None if ahead is None else ahead.teacher,
            )
        self._taps.clear()
        return self._outcome(parts, logits, batch.labels)

    def _outcome(self, parts: dict[str, Tensor], logits: Tensor, labels: Tensor) -> Outcome:
        weights = self.config.losses.model_dump()
        weighted = {name: weights[name] * value for name, value in parts.items()}
        of_labels = [value for name, value in weighted.items() if name in _OF_LABELS]
        of_rows = [value for name, value in weighted.items() if name not in _OF_LABELS]
        return Outcome(
            loss=torch.stack(list(weighted.values())).sum(),
            task_loss=torch.stack(of_labels).sum(),
            talk_loss=torch.stack(of_rows).sum() if of_rows else logits.new_zeros(()),
            parts={name: value.detach() for name, value in parts.items()},
            logits=logits,
            num_tokens=num_tokens(labels),
        )

    def predict(self, batch: Batch) -> Tensor:
        """Returns the student's outputs, [B, C] or [B, L, C]; it is alone."""
        logits = logits_of(self.student(**batch.student))
        self._taps.clear()
        return logits

    def _task(self, logits: Tensor, labels: Tensor) -> Tensor:
        known, count = are_labels(labels), num_tokens(labels)
        # A batch, or a part of one, may have no labels at all: its mean is 0, not 0 / 0.
        if self.config.data.task == "regression":
            logits = logits.reshape(labels.shape)
            if count == len(labels):
                return functional.mse_loss(logits, labels)
            return functional.mse_loss(logits[known], labels[known], reduction="sum") / max(count, 1)
        flat = logits.flatten(0, -2), labels.flatten()
        if labels.ndim == 1 and count == len(labels):
            return functional.cross_entropy(*flat)
        total = functional.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum")
        return total / max(count, 1)


def num_tokens(labels: Tensor) -> int:
    """Returns how many labels there are, of rows [B] or of positions [B, L]."""
    return int(are_labels(labels).sum())


class StepSize(NamedTuple):
    """What all workers have in one step: rows, and labels of rows or of positions."""

    rows: int
    tokens: float


def build_objective(
    config: TrainConfig,
    student: nn.Module,
    example: Batch,
    patience_s: float = 0.0,
    activity: Activity | None = None,
) -> Objective:
    """Builds what a student is trained by, with the conversation that fits it and its teacher.

    Args:
        config: of the run.
        student: the model that is trained.
        example: some examples; the student runs on them once to see how wide its states are.
        patience_s: seconds to go on asking a teacher that does not answer.
        activity: is told that it is asked.

    Raises:
        ValueError: the states that are talked about differ in width.
        TeacherError: the teacher does not say what it is.
    """
    taps = Taps(student, tapped(config.student))
    if config.teacher is None or not config.needs_teacher:
        return Objective(config, student, taps, None)
    student_dim = state_width(
        student,
        taps,
        tapped(config.student),
        example.student,
        needs_positions=config.losses.attention > 0,
    )
    with (activity or Activity()).now(f"connecting to {config.teacher.address}"):
        talking = connect(
            config.teacher,
            config.losses,
            config.talk,
            student_dim=student_dim,
            taps=taps,
            tenant=config.name,
            patience_s=patience_s,
        )
    return Objective(config, student, taps, talking)


def tapped(config: StudentConfig) -> dict[str, str]:
    """Returns the module paths of the states that are talked about, by the name they are read under."""
    paths = {"lower": config.lower, "upper": config.upper}
    return {name: path for name, path in paths.items() if path}


def state_width(
    student: nn.Module,
    taps: Taps,
    paths: dict[str, str],
    inputs: dict[str, Tensor],
    *,
    needs_positions: bool = False,
) -> int:
    """Returns the width of the tapped states; 1 if none is tapped, since then none is encoded.

    Raises:
        ValueError: they differ in width or lack positions, or the student can't read the inputs.
    """
    was_training = student.training
    try:
        with torch.no_grad():
            student.eval()(**inputs)
    except Exception as error:  # what a student may raise has no common base
        shapes = {name: list(tensor.shape) for name, tensor in inputs.items()}
        raise ValueError(
            f"student: its forward pass failed on the first examples, {shapes}: "
            f"{type(error).__name__}: {error}"
        ) from error
    student.train(was_training)
    found = {path: list(taps[name].shape) for name, path in paths.items()}
    widths = {path: shape[-1] for path, shape in found.items()}
    taps.clear()
    if needs_positions and any(len(shape) == 2 for shape in found.values()):  # noqa: PLR2004 - rank
        raise ValueError(
            f"losses.attention: got states of shapes {found}, expected positions among which to attend, "
            "[B, L, D]"
        )
    if len(set(widths.values())) > 1:
        raise ValueError(f"student.lower, student.upper: got states of widths {widths}, expected equal ones")
    return next(iter(widths.values()), 1)
