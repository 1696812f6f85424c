"""All losses that need a teacher, for any student and any loop: the one engine under all ways to train.

Knows the student only by its tapped states, its outputs and a way to run it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from preceptor.terms import ObservationKind
from student_client import losses
from student_client.told import sequence, told_kinds, told_losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from student_client.frames import TeacherInputs
    from student_client.pending import PendingObservation, PendingTalk
    from student_client.talk import Talk, TeacherTalk
    from student_client.talk_config import LossWeights, TalkConfig
    from student_client.taps import Taps

__all__ = ["TalkingLosses"]


_CLOSED = -2.0  # a gate's first value, before the sigmoid: 0.12 of the reply comes through


class TalkingLosses(nn.Module):
    """Computes the losses that need a teacher, by name and unweighted.

    All that is asked of the teacher is sent before any answer is waited for: `begin` before the student runs,
    `finish` after it.

    Args:
        weights: which losses are wanted.
        config: how the student talks.
        talk: the conversation.
        hint_map: the student's width to the teacher's, for hints, or None.
        taps: reads the student's states "lower" and "upper".
    """

    def __init__(
        self,
        weights: LossWeights,
        config: TalkConfig,
        talk: TeacherTalk,
        hint_map: nn.Linear | None,
        taps: Taps,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.config = config
        self.talk = talk
        self.hint_map = hint_map
        gate = torch.full((talk.student_dim,), _CLOSED) if config.gate else None
        self.gate = None if gate is None else nn.Parameter(gate)
        self.teacher_name = self.teacher_fingerprint = ""
        self._taps = taps

    def begin(self, teacher: TeacherInputs, mask: Tensor | None) -> PendingObservation | None:
        """Asks for what does not depend on the student's states.

        Args:
            teacher: what the teacher reads.
            mask: the valid positions of the student's states, [B, L]; None: only the states will say.

        Returns:
            What `finish` needs; None if there is nothing to ask, or the student has to go first.
        """
        kinds = self._kinds()
        if not kinds or (self.weights.talks and mask is None):
            return None
        message_mask = None
        if self.weights.talks and mask is not None:
            message_mask = self.talk.message_mask(mask.bool())
        return self.talk.start_observe(teacher, kinds, message_mask=message_mask)

    def finish(
        self,
        begun: PendingObservation | None,
        teacher: TeacherInputs,
        mask: Tensor | None,
        logits: Tensor,
        run_again: Callable[[], Tensor],
        ahead: TeacherInputs | None = None,
    ) -> dict[str, Tensor]:
        """Talks about the states that the student has just computed.

        Args:
            begun: what `begin` returned.
            teacher: what the teacher reads.
            mask: the valid positions of the student's states, [B, L]; None: all.
            logits: the student's outputs.
            run_again: runs the student on the same inputs and returns the task's loss.
            ahead: what the teacher may read in the meantime, for the next step.

        Returns:
            The losses by name; "task" among them takes the place of the student's own.

        Raises:
            TeacherError: the conversation failed; see `student_client.errors`.
        """
        swaps = self._swaps()
        if mask is None:
            reads_states = self.weights.reads_states or swaps
            states = sequence(self._taps["upper"]) if reads_states else logits
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        mask = mask.bool()
        seen = begun or self.begin(teacher, mask)
        heard = self._start_talk(teacher, mask) if swaps or self._needs_reply else None
        if ahead is not None and self.asks:
            self.talk.read_ahead(ahead, self._kinds())
        parts = {}
        observed = seen.result() if seen else {}
        if heard is not None:
            parts.update(self._heard(mask, heard.result(), run_again, swaps=swaps))
        if "lower_message" in observed:
            parts["message"] = self._message_of_models(mask, observed)
        if "state_consistency" in observed:
            parts["state"] = self._state(mask, observed)
        told = told_losses(
            self.weights, observed, logits=logits, taps=self._taps, mask=mask, hint_map=self.hint_map
        )
        return {**parts, **told}

    @property
    def asks(self) -> bool:
        """Whether a step asks the teacher for anything."""
        needs_reply = self._needs_reply or self.config.swap_probability > 0
        return bool(self._kinds()) or (needs_reply and self.config.control != "no_teacher")

    @property
    def _needs_reply(self) -> bool:
        weights = self.weights
        of_turn = weights.message > 0 and self.config.message_target == "turn"
        return weights.interact > 0 or weights.grounded > 0 or of_turn

    def _kinds(self) -> set[ObservationKind]:
        """Returns all that the losses need of the teacher's own reading."""
        weights, kinds = self.weights, set()
        if weights.message and self.config.message_target == "models":
            kinds |= {ObservationKind.LOWER_MESSAGE, ObservationKind.UPPER_MESSAGE}
        if weights.state:
            kinds.add(ObservationKind.STATE_CONSISTENCY)
        return kinds | told_kinds(weights)

    def _swaps(self) -> bool:
        """Draws whether this step's task is solved with the teacher's layers in the student's middle."""
        chance = self.config.swap_probability if self.training else 0.0
        return chance > 0 and torch.rand(()).item() < chance

    def _start_talk(self, teacher: TeacherInputs, mask: Tensor) -> PendingTalk:
        """Sends the student's message."""
        return self.talk.start(
            self._taps["lower"],
            mask=mask,
            inputs=teacher,
            num_rounds=self.config.num_rounds,
            through_teacher=self.config.through_teacher,
        )

    def _heard(
        self, mask: Tensor, heard: Talk, run_again: Callable[[], Tensor], *, swaps: bool
    ) -> dict[str, Tensor]:
        """Returns the losses of what the student heard; "task" if it takes the place of the student's own."""
        config, weights = self.config, self.weights
        upper, parts = self._taps["upper"], {}
        if weights.interact:
            target = self._entered(upper.detach(), heard.decoded)
            parts["interact"] = losses.interaction(
                upper,
                target.detach() if config.detach_reply else target,
                None if upper.ndim == 2 else mask,  # noqa: PLR2004 - rank
            )
        if weights.grounded:
            with self._taps.replaced("upper", self._entered(upper, heard.decoded)):
                parts["grounded"] = run_again()
        if swaps:
            with self._taps.replaced("upper", heard.decoded):
                parts["task"] = run_again()
        if weights.message and config.message_target == "turn":
            parts["message"] = self._message_of_turn(heard)
        return parts

    def _message_of_turn(self, heard: Talk) -> Tensor:
        rounds = [
            self._same_message(message, reply, heard.message_mask)
            for message, reply in zip(heard.messages, heard.replies, strict=True)
        ]
        return torch.stack(rounds).mean()

    def _message_of_models(self, mask: Tensor, seen: dict[str, Tensor]) -> Tensor:
        talk = self.talk
        message_mask = talk.message_mask(mask)
        ends = [
            self._same_message(
                talk.student_encoder(sequence(self._taps[tap]), mask, message_mask), seen[name], message_mask
            )
            for tap, name in (("lower", "lower_message"), ("upper", "upper_message"))
        ]
        return torch.stack(ends).sum()

    def _entered(self, upper: Tensor, decoded: Tensor) -> Tensor:
        """Returns the state that a reply leads to: S'_hi, or through a gate S_hi + sigmoid(g) S'_hi.

        After the fuser of Cache-to-Cache (arXiv 2510.03215), a gate lets a student keep what it has.
        """
        return decoded if self.gate is None else upper + torch.sigmoid(self.gate) * decoded

    def _same_message(self, message: Tensor, other: Tensor, message_mask: Tensor) -> Tensor:
        """Returns L_MC of two ends."""
        is_contrast = self.config.message_loss == "contrastive"
        loss = losses.message_contrast if is_contrast else losses.message_consistency
        return loss(message, other, message_mask, detach_other=self.config.detach_teacher)

    def _state(self, mask: Tensor, seen: dict[str, Tensor]) -> Tensor:
        talk = self.talk
        message_mask = talk.message_mask(mask)
        own = [
            losses.state_consistency(
                talk.student_encoder, talk.student_decoder, sequence(self._taps[tap]), mask, message_mask
            )
            for tap in ("lower", "upper")
        ]
        return torch.stack(own).mean() + seen["state_consistency"].mean()
