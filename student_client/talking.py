"""All losses that need a teacher, for any student and any loop: the one engine under all ways to train.

Knows the student only by its tapped states, its outputs and a way to run it again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from preceptor.codec import resample
from preceptor.terms import ObservationKind
from student_client import losses
from student_client.client import TeacherClient
from student_client.errors import TeacherUnavailableError
from student_client.talk import MAX_FRAME_BYTES, TeacherTalk

if TYPE_CHECKING:
    from collections.abc import Callable

    from preceptor.v1 import teacher_pb2 as pb
    from student_client.config import LossWeights, TalkConfig, TeacherConfig
    from student_client.frames import TeacherInputs
    from student_client.pending import PendingObservation, PendingTalk
    from student_client.talk import Talk
    from student_client.taps import Taps

__all__ = ["TalkingLosses", "connect"]


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

        Raises:
            TeacherError: the conversation failed; see `student_client.errors`.
        """
        if mask is None:
            states = _sequence(self._taps["upper"]) if self.weights.talks or self.weights.hint else logits
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        mask = mask.bool()
        seen = begun or self.begin(teacher, mask)
        heard = self._start_talk(teacher, mask)
        if ahead is not None:
            self.talk.read_ahead(ahead, self._kinds())
        parts = {}
        observed = seen.result() if seen else {}
        if heard is not None:
            parts.update(self._heard(mask, heard.result(), run_again))
        if "lower_message" in observed:
            parts["message"] = self._message_of_models(mask, observed)
        if "state_consistency" in observed:
            parts["state"] = self._state(mask, observed)
        return {**parts, **self._told(logits, mask, observed)}

    def _kinds(self) -> set[ObservationKind]:
        """Returns all that the losses need of the teacher's own reading."""
        weights, kinds = self.weights, set()
        if weights.message and self.config.message_target == "models":
            kinds |= {ObservationKind.LOWER_MESSAGE, ObservationKind.UPPER_MESSAGE}
        if weights.state:
            kinds.add(ObservationKind.STATE_CONSISTENCY)
        if weights.kd:
            kinds.add(ObservationKind.LOGITS)
        if weights.hint:
            kinds.add(ObservationKind.POOLED_STATE)
        return kinds

    def _start_talk(self, teacher: TeacherInputs, mask: Tensor) -> PendingTalk | None:
        """Sends the student's message, if a loss needs the reply."""
        config, weights = self.config, self.weights
        of_turn = weights.message and config.message_target == "turn"
        if not (weights.interact or weights.grounded or of_turn):
            return None
        return self.talk.start(
            self._taps["lower"],
            mask=mask,
            inputs=teacher,
            num_rounds=config.num_rounds,
            through_teacher=config.through_teacher,
        )

    def _told(self, logits: Tensor, mask: Tensor, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the losses of plain distillation."""
        parts = {}
        if "logits" in seen:
            parts["kd"] = losses.logits_distillation(logits, seen["logits"], self.weights.temperature)
        if "pooled_state" in seen and self.hint_map is not None:
            one = torch.ones(mask.shape[0], 1, dtype=torch.bool, device=mask.device)
            pooled = resample(_sequence(self._taps["upper"]), mask, one)[:, 0]
            parts["hint"] = losses.hint(self.hint_map(pooled), seen["pooled_state"])
        return parts

    def _heard(self, mask: Tensor, heard: Talk, run_again: Callable[[], Tensor]) -> dict[str, Tensor]:
        """Returns the losses of what the student heard."""
        config, weights = self.config, self.weights
        upper, parts = self._taps["upper"], {}
        decoded = heard.decoded.detach() if config.detach_reply else heard.decoded
        if weights.interact:
            parts["interact"] = losses.interaction(
                upper,
                decoded,
                None if upper.ndim == 2 else mask,  # noqa: PLR2004 - rank
            )
        if weights.grounded:
            with self._taps.replaced("upper", heard.decoded):
                parts["grounded"] = run_again()
        if weights.message and config.message_target == "turn":
            parts["message"] = self._message_of_turn(heard)
        return parts

    def _message_of_turn(self, heard: Talk) -> Tensor:
        rounds = [
            losses.message_consistency(
                message, reply, heard.message_mask, detach_other=self.config.detach_teacher
            )
            for message, reply in zip(heard.messages, heard.replies, strict=True)
        ]
        return torch.stack(rounds).mean()

    def _message_of_models(self, mask: Tensor, seen: dict[str, Tensor]) -> Tensor:
        talk = self.talk
        message_mask = talk.message_mask(mask)
        ends = [
            losses.message_consistency(
                talk.student_encoder(_sequence(self._taps[tap]), mask, message_mask),
                seen[name],
                message_mask,
                detach_other=self.config.detach_teacher,
            )
            for tap, name in (("lower", "lower_message"), ("upper", "upper_message"))
        ]
        return torch.stack(ends).sum()

    def _state(self, mask: Tensor, seen: dict[str, Tensor]) -> Tensor:
        talk = self.talk
        message_mask = talk.message_mask(mask)
        own = [
            losses.state_consistency(
                talk.student_encoder, talk.student_decoder, _sequence(self._taps[tap]), mask, message_mask
            )
            for tap in ("lower", "upper")
        ]
        return torch.stack(own).mean() + seen["state_consistency"].mean()


def _sequence(states: Tensor) -> Tensor:
    """Gives [B, D] states a position axis."""
    return states[:, None] if states.ndim == 2 else states  # noqa: PLR2004 - rank


def _describe(client: TeacherClient, patience_s: float) -> pb.DescribeTeacherResponse:
    """Asks a teacher what it is; its replicas may just be starting."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return client.describe()
        except TeacherUnavailableError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(client.options.max_backoff_s)


def connect(
    teacher: TeacherConfig,
    weights: LossWeights,
    config: TalkConfig,
    *,
    student_dim: int,
    taps: Taps,
    tenant: str,
    patience_s: float = 0.0,
) -> TalkingLosses:
    """Builds the conversation that fits a student and its teacher.

    Args:
        teacher: where it is.
        weights: which losses are wanted.
        config: how the student talks.
        student_dim: the width of the states that are talked about.
        taps: reads them.
        tenant: the team, where `teacher` names none.
        patience_s: seconds to go on asking a teacher that does not answer.

    Raises:
        TeacherError: the teacher does not say what it is.
    """
    client = TeacherClient(teacher.address, teacher.options)
    description = _describe(client, patience_s)
    teacher_dim = description.teacher.hidden_size
    talk = TeacherTalk(
        client,
        config.codec,
        student_dim=student_dim,
        teacher_dim=teacher_dim,
        reading=config.reading,
        split_layer=config.split_layer,
        compression=config.compression,
        deterministic=config.deterministic,
        tenant=teacher.tenant or tenant,
        micro_batch_size=config.micro_batch_size,
        max_frame_bytes=min(MAX_FRAME_BYTES, description.limits.max_frame_bytes),
        limits=description.limits,
    )
    talk.requires_grad_(weights.talks)
    hint_map = nn.Linear(student_dim, teacher_dim) if weights.hint else None
    talking = TalkingLosses(weights, config, talk, hint_map, taps)
    talking.teacher_name = description.teacher.name
    talking.teacher_fingerprint = description.teacher.fingerprint
    return talking
