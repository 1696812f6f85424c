"""Gives training rows the outputs that a student is distilled from, before it is trained.

Where they are the teacher's own outputs, they are asked for step by step, and nothing is done here. Else they
are those of a linear probe, or answers of a conversation (`lessons`) that corrects the better of the two, in
which a first student may have a say.

Shapes: N rows, C outputs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from preceptor.terms import OBSERVATION_KIND_NUMBERS, ObservationKind
from student_client.batches import Examples, are_labels, drawn_ahead
from student_client.costs import cost_facts
from student_client.first_student import mixed_with_student
from student_client.lessons import take_lessons
from student_client.probe import fit_held_out, fit_probe, loss_of, worth_of

if TYPE_CHECKING:
    from torch import Tensor

    from student_client.activity import Activity
    from student_client.config import TrainConfig
    from student_client.data import Splits
    from student_client.talk import TeacherTalk
    from student_client.talking import TalkingLosses
    from student_client.told_file import ToldFile

__all__ = ["told_rows"]


def told_rows(
    config: TrainConfig,
    splits: Splits,
    talking: TalkingLosses | None,
    activity: Activity,
    keep: ToldFile | None = None,
) -> tuple[Splits, dict[str, Any]]:
    """Gives the training rows what a run is distilled from, if that is known before it begins.

    Args:
        config: of the run.
        splits: its examples.
        talking: whose teacher is asked, each row once and in lessons once an epoch.
        activity: is told.
        keep: where it is found if it was found out before; None: it is found out here and now.

    Returns:
        The splits, with `told` training examples, and what a run's result says of distillation; nothing where
        there is none.

    Raises:
        TeacherError: see `student_client.errors`.
    """
    if not config.losses.kd or talking is None:
        return splits, {}
    source = config.losses.kd_source
    if source == "head":
        return splits, {"kd_source": "head"}
    parts = _parts(splits)
    if keep is None:
        outputs, facts = _found_out(config, splits, talking, activity)
    else:
        outputs, facts = keep(
            parts, talking.teacher_fingerprint, lambda: _found_out(config, splits, talking, activity)
        )
    told = dataclasses.replace(splits, train=dataclasses.replace(parts[0], told=outputs))
    return told, {"kd_source": source, **facts}


def _found_out(
    config: TrainConfig, splits: Splits, talking: TalkingLosses, activity: Activity
) -> tuple[Tensor, dict[str, Any]]:
    """Returns what the training rows are told, [N, C], and what a run's result says of it."""
    outputs, facts = _outputs_at_first(config, splits, talking.talk, activity)
    if not talking.asks:
        facts["asking"] = cost_facts(talking.talk.conversation)  # else they are part of the run's own
        talking.talk.close()
    if config.losses.kd_source == "lessons" and config.lessons.epochs:
        outputs, facts["lessons"] = take_lessons(config, _parts(splits), outputs, activity)
    return outputs[0], facts


def _outputs_at_first(
    config: TrainConfig, splits: Splits, talk: TeacherTalk, activity: Activity
) -> tuple[list[Tensor], dict[str, Any]]:
    """Returns what is distilled, or what replies correct first, [N, C] each, and facts of its source."""
    parts, lessons = _parts(splits), config.lessons
    if config.losses.kd_source == "probe":
        return _probed(config, splits, talk, activity)
    if lessons.base == "none":
        return [_no_answer(part, parts[0].labels, len(splits.classes)) for part in parts], {}
    outputs, facts = _probed(config, splits, talk, activity)
    own = _own_outputs(config, splits, talk, activity)
    if own is not None and loss_of(own[1], parts[1].labels) < loss_of(outputs[1], parts[1].labels):
        outputs, facts = own, {"head": _worth(own, parts)}
    if lessons.first_student:
        outputs, told = mixed_with_student(config, parts, outputs, len(splits.classes), activity)
        facts = {**facts, **({"first_student": told} if told else {})}
    return outputs, facts


def _no_answer(part: Examples, labels: Tensor, num_classes: int) -> Tensor:
    """Returns outputs that know nothing of a row, [N, C]: no class is likelier, or the labels' mean."""
    if labels.is_floating_point():
        return labels[are_labels(labels)].mean().expand(len(part), 1)
    return torch.zeros(len(part), num_classes)


def _parts(splits: Splits) -> list[Examples]:
    parts = [splits.train, splits.valid, splits.test]
    assert all(isinstance(part, Examples) for part in parts)  # noqa: S101 - the config refuses a stream
    return [part for part in parts if isinstance(part, Examples)]


def _probed(
    config: TrainConfig, splits: Splits, talk: TeacherTalk, activity: Activity
) -> tuple[list[Tensor], dict[str, Any]]:
    """Returns a probe's outputs for training, validation and test rows, [N, C], and what it is worth."""
    parts = _parts(splits)
    with activity.now("asking the teacher for its states, for a probe"):
        states = [_seen(talk, part, ObservationKind.POOLED_STATE, config.batch_size) for part in parts]
    with activity.now("fitting a probe of the teacher"):
        train, valid, _ = parts
        known = are_labels(train.labels)
        labelled = states[0][known], train.labels[known]
        others = states[1], valid.labels
        probe = fit_probe(*labelled, *others, num_classes=len(splits.classes))
        outputs = [probe(each) for each in states]
        if config.losses.kd_source == "lessons" and int(known.sum()) > 1:
            outputs[0][known] = fit_held_out(
                *labelled, *others, num_classes=len(splits.classes), seed=config.seed
            )
    return outputs, {"probe": {**_worth(outputs, parts), "l2": probe.l2}}


def _own_outputs(
    config: TrainConfig, splits: Splits, talk: TeacherTalk, activity: Activity
) -> list[Tensor] | None:
    """Returns the teacher's own outputs for the same rows; None if they are not of the task."""
    known = talk.client.describe().teacher.observations
    if OBSERVATION_KIND_NUMBERS[ObservationKind.LOGITS] not in known:
        return None
    parts = _parts(splits)
    first = talk.observe(parts[1].example().teacher, [ObservationKind.LOGITS])["logits"]
    if first.shape[-1] != max(len(splits.classes), 1):
        return None
    with activity.now("asking the teacher for its outputs"):
        return [_seen(talk, part, ObservationKind.LOGITS, config.batch_size) for part in parts]


def _worth(outputs: list[Tensor], parts: list[Examples]) -> dict[str, float]:
    return {
        name: worth_of(outputs[number], parts[number].labels) for number, name in ((1, "valid"), (2, "test"))
    }


def _seen(talk: TeacherTalk, examples: Examples, kind: ObservationKind, batch_size: int) -> Tensor:
    """Returns what the teacher says of all rows, [N, ...]; a batch is asked for while one is awaited."""
    with torch.no_grad():
        asked = (talk.start_observe(batch.teacher, [kind]) for batch in examples.batches(batch_size))
        seen = [each.result()[kind.value] for each in drawn_ahead(asked)]
    return torch.cat(seen).float().cpu()
