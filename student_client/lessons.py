"""A conversation is trained until its replies solve the task; then the student learns from its answers.

The teacher stays frozen. What is trained is what it is told and how its replies are read: a message of a few
positions (Dec_T gives each a learned state of its own), Enc_T, and a map from the reply to outputs, which are
added to an answer that is there already (see `told_rows`). It starts as that answer and is kept where it does
best on the validation rows. After that every row is asked about once, also those without
labels.

A message that is learned is a soft prompt (Lester et al., arXiv 2104.08691) of the upper layers; a correction
of frozen outputs is that of side-tuning (Zhang et al., arXiv 1912.13503). Told by the codec of Talking Models
(arXiv 2310.03188), both cost the wire a message and a reply.

Shapes: B rows of a batch, N all rows, K positions and M width of a message, C outputs.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from student_client.batches import Examples, are_labels, drawn_ahead, split_rows
from student_client.connecting import open_talk
from student_client.costs import cost_facts
from student_client.probe import loss_of, worth_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from student_client.activity import Activity
    from student_client.config import TrainConfig
    from student_client.frames import TeacherInputs
    from student_client.lessons_config import LessonsConfig
    from student_client.pending import PendingTalk
    from student_client.talk import TeacherTalk

__all__ = ["Tutor", "take_lessons"]

_WARMUP_SHARE = 0.1


class Tutor(nn.Module):
    """Answers a task by what a teacher replies.

    Args:
        talk: the conversation; its codec is trained with this.
        num_outputs: C.
        num_rounds: exchanges about a row.
        position_std: of a message's states at first; None: as the codec has them.
    """

    def __init__(
        self,
        talk: TeacherTalk,
        num_outputs: int,
        num_rounds: int = 1,
        position_std: float | None = None,
    ) -> None:
        super().__init__()
        self.talk = talk
        self.num_rounds = num_rounds
        message_len = talk.spec.message_len or 1
        self.head = nn.Linear(message_len * talk.spec.message_dim, num_outputs)
        nn.init.zeros_(self.head.weight)  # the first answer is the one that is there already
        nn.init.zeros_(self.head.bias)
        position = talk.teacher_codec.decoder.position
        if position is not None and position_std is not None:
            nn.init.normal_(position, std=position_std)

    def start(self, inputs: TeacherInputs, num_rows: int) -> PendingTalk:
        """Asks about some rows and returns at once.

        Args:
            inputs: what the teacher reads of them.
            num_rows: B.
        """
        states = self.head.weight.new_zeros(num_rows, 1, self.talk.student_dim)
        return self.talk.start(states, inputs=inputs, num_rounds=self.num_rounds)

    def answer(self, heard: PendingTalk, base: Tensor) -> Tensor:
        """Returns outputs, [B, C]: `base`, [B, C], and what the reply adds to it.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        reply = heard.result().replies[-1].flatten(1)
        correction: Tensor = self.head(functional.gelu(reply))
        return base + correction


@dataclass(frozen=True)
class _Rows:
    """Rows that are asked about, with the answer that is there already and their labels."""

    examples: Examples
    base: Tensor

    def batches(self, rows: Tensor, size: int) -> Iterator[tuple[TeacherInputs, Tensor, Tensor]]:
        """Yields inputs, base and labels."""
        for some in split_rows(rows, size):
            yield self.examples.select(some).teacher, self.base[some], self.examples.labels[some]


def take_lessons(
    config: TrainConfig, parts: Sequence[Examples], bases: Sequence[Tensor], activity: Activity
) -> tuple[list[Tensor], dict[str, Any]]:
    """Trains a conversation on the labelled rows and asks it about all.

    Args:
        config: of the run; its `lessons` say how.
        parts: training, validation and test rows; the last ones only to say what the answers are worth.
        bases: the answers that are there already, [N, C] each.
        activity: is told.

    Returns:
        The answers for the same rows, [N, C] each, and facts for the run's result.

    Raises:
        TeacherError: see `student_client.errors`.
    """
    rows = [_Rows(examples, base) for examples, base in zip(parts, bases, strict=True)]
    with torch.random.fork_rng(devices=[]):  # the student's own draws are those of any other run
        torch.manual_seed(config.seed)
        tutor = _tutor(config, bases[0].shape[1])
        try:
            best_epoch = _train(tutor, config.lessons, rows[0], rows[1], activity)
            with activity.now("asking the teacher about all rows"):
                answers = [_answers(tutor, each, config.lessons.batch_size) for each in rows]
            costs = cost_facts(tutor.talk.conversation)
        finally:
            tutor.talk.close()
    return answers, {
        "valid": worth_of(answers[1], parts[1].labels),
        "test": worth_of(answers[2], parts[2].labels),
        "epoch": best_epoch,
        "costs": costs,
    }


def _tutor(config: TrainConfig, num_outputs: int) -> Tutor:
    assert config.teacher is not None  # noqa: S101 - the config asks for one
    lessons = config.lessons
    settings = config.talk.model_copy(
        update={"codec": lessons.codec, "reading": lessons.reading, "split_layer": lessons.split_layer}
    )
    tenant = config.teacher.tenant or config.name
    talk = open_talk(config.teacher, settings, student_dim=lessons.codec.message_dim, tenant=tenant)
    return Tutor(talk, num_outputs, lessons.num_rounds, lessons.position_std)


def _train(tutor: Tutor, config: LessonsConfig, train: _Rows, valid: _Rows, activity: Activity) -> int:
    """Leaves the tutor as it was best on the validation rows; returns after how many epochs that was."""
    labelled = are_labels(train.examples.labels).nonzero()[:, 0]
    num_steps = config.epochs * math.ceil(len(labelled) / config.batch_size)
    optimizer = torch.optim.AdamW(tutor.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    num_scheduled = num_steps + 1
    if num_scheduled * _WARMUP_SHARE == 1:
        num_scheduled += 1  # OneCycleLR divides by the length of its first phase, here 0
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=num_scheduled, pct_start=_WARMUP_SHARE
    )
    best = loss_of(valid.base, valid.examples.labels).item(), 0, copy.deepcopy(tutor.state_dict())
    for epoch in range(1, config.epochs + 1):
        with activity.now(f"lesson {epoch} of {config.epochs}, the best so far {best[1]}"):
            order = labelled[torch.randperm(len(labelled))]
            for inputs, base, labels in train.batches(order, config.batch_size):
                optimizer.zero_grad()
                outputs = tutor.answer(tutor.start(inputs, len(labels)), base)
                torch.autograd.backward(loss_of(outputs, labels))
                nn.utils.clip_grad_norm_(tutor.parameters(), config.max_grad_norm)
                optimizer.step()
                schedule.step()
            loss = loss_of(_answers(tutor, valid, config.batch_size), valid.examples.labels).item()
        if loss < best[0]:
            best = loss, epoch, copy.deepcopy(tutor.state_dict())
    tutor.load_state_dict(best[2])
    return best[1]


@torch.no_grad()
def _answers(tutor: Tutor, rows: _Rows, batch_size: int) -> Tensor:
    """Returns the answers for all rows, [N, C]; a batch is asked about while one is awaited."""
    batches = rows.batches(torch.arange(len(rows.base)), batch_size)
    asked = ((tutor.start(inputs, len(base)), base) for inputs, base, _ in batches)
    return torch.cat([tutor.answer(*each) for each in drawn_ahead(asked)])
