"""Builds the conversation that fits a student and its teacher, once it has said what it is."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from preceptor.terms import OBSERVATION_KIND_NUMBERS, ObservationKind
from student_client.client import TeacherClient
from student_client.controls import ControlledTalk
from student_client.errors import TeacherUnavailableError, UnsupportedByTeacherError
from student_client.talk import MAX_FRAME_BYTES, TeacherTalk
from student_client.talking import TalkingLosses
from student_client.told import told_kinds

if TYPE_CHECKING:
    from preceptor.v1 import teacher_pb2 as pb
    from student_client.config import TeacherConfig
    from student_client.talk_config import LossWeights, TalkConfig
    from student_client.taps import Taps

__all__ = ["connect", "open_talk"]


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


def _check_outputs(description: pb.DescribeTeacherResponse, weights: LossWeights) -> None:
    """Says that a teacher has no outputs before anything is asked of it."""
    logits = OBSERVATION_KIND_NUMBERS[ObservationKind.LOGITS]
    if ObservationKind.LOGITS in told_kinds(weights) and logits not in description.teacher.observations:
        raise UnsupportedByTeacherError(
            f"losses.kd: got a weight, and teacher {description.teacher.name!r} has no head; "
            "losses.kd_source: probe fits one, lessons more, to the labelled rows"
        )


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
        TeacherError: the teacher does not say what it is, or can't do what is wanted.
    """
    client = TeacherClient(teacher.address, teacher.options)
    description = _describe(client, patience_s)
    _check_outputs(description, weights)
    teacher_dim = description.teacher.hidden_size
    talk = _talk(client, description, config, student_dim, teacher.tenant or tenant)
    talk.requires_grad_(weights.talks or config.swap_probability > 0)
    hint_map = nn.Linear(student_dim, teacher_dim) if weights.hint else None
    talking = TalkingLosses(weights, config, talk, hint_map, taps)
    talking.teacher_name = description.teacher.name
    talking.teacher_fingerprint = description.teacher.fingerprint
    return talking


def open_talk(teacher: TeacherConfig, config: TalkConfig, *, student_dim: int, tenant: str) -> TeacherTalk:
    """Builds a conversation with a teacher that answers.

    Args:
        teacher: where it is.
        config: how the student talks.
        student_dim: the width of the states that are talked about.
        tenant: the team.

    Raises:
        TeacherError: the teacher does not say what it is.
    """
    client = TeacherClient(teacher.address, teacher.options)
    return _talk(client, client.describe(), config, student_dim, tenant)


def _talk(
    client: TeacherClient,
    description: pb.DescribeTeacherResponse,
    config: TalkConfig,
    student_dim: int,
    tenant: str,
) -> TeacherTalk:
    build = TeacherTalk if config.control is None else partial(ControlledTalk, control=config.control)
    return build(
        client,
        config.codec,
        student_dim=student_dim,
        teacher_dim=description.teacher.hidden_size,
        reading=config.reading,
        split_layer=config.split_layer,
        compression=config.compression,
        deterministic=config.deterministic,
        tenant=tenant,
        micro_batch_size=config.micro_batch_size,
        max_frame_bytes=min(MAX_FRAME_BYTES, description.limits.max_frame_bytes),
        limits=description.limits,
    )
