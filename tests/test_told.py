"""Losses of what the teacher says by itself, in a run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from student_client import losses
from student_client.run import StudentRun
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


def test_attention_is_that_of_lower_and_upper_states(server: ToyServer, tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    rows = [f"{' '.join(['word', 'other', 'third'][: 1 + number % 3])},{number % 2}" for number in range(12)]
    table.write_text("\n".join(["text,label", *rows]))
    student = {
        "factory": "student_client.students:TextStudent",
        "kwargs": {"dim": 8, "vocab_size": 64, "max_len": 8, "dropout": 0.0},
        "lower": "blocks.0",
        "upper": "blocks.1",
        "mask": "attention_mask",
        "num_classes_kwarg": "num_classes",
    }
    sources = dict.fromkeys(("train", "valid", "test"), table)
    data = {**sources, "task": "classification", "text": "text", "vocab_size": 32, "max_len": 8}
    config = make_config(table, server.address, student=student, data=data, losses={"attention": 1.0}, **FAST)
    run = StudentRun(config)
    batch = all_rows(run)
    ids = torch.randint(0, 32, (12, 5), generator=torch.Generator().manual_seed(0))
    batch = dataclasses.replace(batch, teacher={"ids": ids})
    outcome = run.objective(batch)
    assert run.objective.talk is not None
    seen = run.objective.talk.observe({"ids": ids}, ["lower_state", "upper_state"])
    run.objective.student(**batch.student)
    mask = batch.student["attention_mask"]
    layers = [
        losses.attention(run.objective._taps[tap], seen[f"{tap}_state"], mask, seen["mask"])
        for tap in ("lower", "upper")
    ]
    expected = (layers[0] + layers[1]) / 2
    assert expected > 0
    torch.testing.assert_close(outcome.parts["attention"], expected)
    torch.autograd.backward(outcome.talk_loss)
    embed: Any = run.objective.student.embed
    assert embed.weight.grad.abs().sum() > 0
    run.close()


def test_attention_without_positions_is_refused_before_anything_starts(
    labelled: Path, row_server: ToyServer
) -> None:
    with pytest.raises(ValueError, match=r"losses\.attention: got states of shapes .*\[2, 6\].* expected"):
        rows_run(labelled, None, row_server.address, losses={"attention": 1.0})
    student = {"factory": "tests.toy_student:ToyStudent", "upper": "blocks.1"}
    with pytest.raises(ValueError, match=r"student\.lower, student\.upper: got null, expected both"):
        make_config(labelled, "127.0.0.1:1", losses={"attention": 1}, student=student)


def test_relations_need_states_to_relate(labelled: Path) -> None:
    student = {"factory": "tests.toy_student:ToyStudent", "num_classes_kwarg": "num_classes"}
    with pytest.raises(ValueError, match=r"student\.upper: got null, expected a module path"):
        make_config(labelled, "127.0.0.1:1", losses={"relation": 1}, student=student)
    data = {"train": labelled, "task": "tokens", "words": "w"}
    with pytest.raises(ValueError, match=r"losses\.kd, hint, relation: got a weight, expected 0"):
        make_config(labelled, "127.0.0.1:1", losses={"relation": 1}, data=data)
