"""Losses of what the teacher says by itself, in a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from student_client import losses
from tests.test_train_run import make_config
from tests.toy_rows import all_rows, labelled, row_server, rows_run, unlabelled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.toy_server import ToyServer

FAST: dict[str, Any] = {"epochs": 20, "optimizer": {"lr": 0.02}}

__all__ = ["labelled", "row_server", "unlabelled"]


def test_relations_are_those_of_the_students_and_the_teachers_pooled_states(
    labelled: Path, unlabelled: Path, row_server: ToyServer
) -> None:
    run = rows_run(labelled, unlabelled, row_server.address, losses={"relation": 2.0}, **FAST)
    objective, batch = run.objective, all_rows(run)
    outcome = objective(batch)
    assert objective.talk is not None
    assert isinstance(batch.teacher, dict)
    seen = objective.talk.observe(batch.teacher, ["pooled_state"])["pooled_state"]
    objective.student(**batch.student)
    expected = losses.relation(objective._taps["upper"], seen)
    torch.testing.assert_close(outcome.parts["relation"], expected)
    torch.testing.assert_close(outcome.loss, outcome.parts["task"] + 2.0 * expected)
    torch.testing.assert_close(outcome.talk_loss, 2.0 * expected)
    assert objective.talk.teacher_codec.decoder.body.weight.requires_grad is False
    while run.epoch < 20:
        list(run.train_epoch())
    assert objective(batch).parts["relation"] < 0.5 * expected
    run.close()


def test_relations_need_states_to_relate(labelled: Path) -> None:
    student = {"factory": "tests.toy_student:ToyStudent", "num_classes_kwarg": "num_classes"}
    with pytest.raises(ValueError, match=r"student\.upper: got null, expected a module path"):
        make_config(labelled, "127.0.0.1:1", losses={"relation": 1}, student=student)
    data = {"train": labelled, "task": "tokens", "words": "w"}
    with pytest.raises(ValueError, match=r"losses\.kd, hint, relation: got a weight, expected 0"):
        make_config(labelled, "127.0.0.1:1", losses={"relation": 1}, data=data)
