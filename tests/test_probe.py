"""Distillation from a linear probe of the teacher: its fit, what it is asked for, what is told of it."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from student_client import losses, probe
from student_client.config import LossWeights, TalkConfig, TeacherConfig
from student_client.connecting import connect
from student_client.errors import UnsupportedByTeacherError
from student_client.model_card import _training
from student_client.probe import fit_probe, loss_of
from student_client.taps import Taps
from tests.test_train_run import make_config
from tests.toy_rows import all_rows, labelled, row_server, rows_run, unlabelled
from tests.toy_student import ToyStudent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from services.teacher.families.base import Teacher
    from tests.toy_server import ToyServer

__all__ = ["labelled", "row_server", "unlabelled"]


def _rows(num_rows: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns states of different scales, classes and numbers that depend on two of their columns."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(num_rows, 12, generator=generator) * torch.logspace(-1, 1, 12) + 3.0
    truth = 2 * (states[:, 0] - 3) / 0.1 - (states[:, 11] - 3) / 10
    numbers = truth + noise * torch.randn(num_rows, generator=generator)
    return states, (numbers > 0).long() + (numbers > 2).long(), numbers


def test_the_fit_is_where_the_objective_has_no_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_L2_GRID", (0.01,))
    states, classes, numbers = _rows(80, 0)
    states, numbers = states.double(), numbers.double()  # CPUs add up otherwise in the last bits of less
    mean, scale = states.mean(0), states.std(0, correction=0)
    for labels in (classes, numbers):
        fitted = fit_probe(states, labels, states, labels, 3)
        weight = (fitted.weight * scale).requires_grad_()
        bias = (fitted.bias + fitted.weight @ mean).requires_grad_()
        outputs = functional.linear((states - mean) / scale, weight, bias)
        if labels is classes:
            loss = functional.cross_entropy(outputs, labels) + 0.005 * weight.square().sum()
        else:
            loss = functional.mse_loss(outputs[:, 0], labels) + 0.01 * weight.square().sum()
        for gradient in torch.autograd.grad(loss, [weight, bias]):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=2e-4, rtol=0)
        torch.testing.assert_close(outputs, fitted(states))


@pytest.mark.parametrize("noise", [0.0, 6.0])
def test_the_best_on_other_rows_is_kept(monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    states, classes, numbers = _rows(40, 1, noise)
    others, their_classes, their_numbers = _rows(200, 2, noise)
    for labels, theirs in ((classes, their_classes), (numbers, their_numbers)):
        chosen = fit_probe(states, labels, others, theirs, 3)
        losses = []
        for l2 in (10.0, 0.1, 1e-4):
            with monkeypatch.context() as patched:
                patched.setattr(probe, "_L2_GRID", (l2,))
                losses.append(loss_of(fit_probe(states, labels, others, theirs, 3)(others), theirs))
        assert loss_of(chosen(others), theirs) <= min(losses) + 1e-3


def test_more_noise_is_held_back_more() -> None:
    chosen = []
    for noise in (0.0, 20.0):
        states, _, numbers = _rows(40, 1, noise)
        others, _, theirs = _rows(200, 2, noise)
        chosen.append(fit_probe(states, numbers, others, theirs, 0).l2)
    assert chosen[0] < chosen[1]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_student_is_distilled_from_the_probe_on_all_rows(
    labelled: Path, unlabelled: Path, row_server: ToyServer, task: str
) -> None:
    weights = {"task": 1.0, "kd": 0.5, "kd_source": "probe", "temperature": 2.0}
    before = row_server.queue.num_admitted
    run = rows_run(labelled, unlabelled, row_server.address, task=task, losses=weights)
    assert row_server.queue.num_admitted - before == 2 + 2 + 2  # batches of 16 of 32, 20 and 20 rows
    batch = all_rows(run)
    assert batch.told is not None
    assert batch.told.shape == (32, 2 if task == "classification" else 1)
    run.objective.eval()
    outcome = run.objective(batch)
    expected = losses.logits_distillation(outcome.logits, batch.told, 2.0)
    torch.testing.assert_close(outcome.parts["kd"], expected)
    torch.testing.assert_close(outcome.loss, outcome.parts["task"] + 0.5 * expected)
    list(run.train_epoch())
    assert row_server.queue.num_admitted - before == 6
    facts = run.finish()
    assert facts["kd_source"] == "probe"
    assert set(facts["probe"]) == {"valid", "test", "l2"}
    card = _training(run.config, {"teacher": None}, {"packages": {}, "git": None}, run.objective.student)
    assert "- losses: task 1, kd of a linear probe 0.5\n" in card
    outputs, labels = batch.told[:20], batch.labels[:20]
    if task == "classification":
        assert facts["probe"]["test"] == pytest.approx((outputs.argmax(-1) == labels).float().mean().item())
    else:
        error = functional.mse_loss(outputs[:, 0], labels).sqrt().item()
        assert facts["probe"]["test"] == pytest.approx(error, rel=1e-4)
    run.close()


def test_rows_keep_what_they_were_told_in_any_order_part_and_share(
    labelled: Path, unlabelled: Path, row_server: ToyServer
) -> None:
    run = rows_run(labelled, unlabelled, row_server.address, losses={"kd": 1.0, "kd_source": "probe"})
    batch = all_rows(run)
    assert batch.told is not None
    told_of = dict(zip(batch.student["ids"].tolist(), batch.told, strict=True))
    shuffled = run.splits.train.shuffled(8, seed=1, epoch=1, rank=1, world_size=2)
    for part in itertools.chain.from_iterable(each.parts(3) for each in shuffled):
        assert part.told is not None
        for number, told in zip(part.student["ids"].tolist(), part.told, strict=True):
            assert torch.equal(told, told_of[number])
    run.close()


def test_a_resumed_run_is_told_the_same(labelled: Path, unlabelled: Path, row_server: ToyServer) -> None:
    weights = {"task": 1.0, "kd": 1.0, "kd_source": "probe"}
    first = rows_run(labelled, unlabelled, row_server.address, losses=weights, epochs=2)
    list(first.train_epoch())
    state = copy.deepcopy(first.state())
    expected = list(first.train_epoch())
    second = rows_run(labelled, unlabelled, row_server.address, losses=weights, epochs=2)
    second.load_state(state)
    assert list(second.train_epoch()) == expected
    first.close()
    second.close()


def test_a_probe_goes_with_talking_and_hints(labelled: Path, row_server: ToyServer) -> None:
    weights = {"kd": 1.0, "kd_source": "probe", "hint": 1.0, "interact": 1.0}
    run = rows_run(labelled, None, row_server.address, losses=weights)
    (step, *_) = run.train_epoch()
    assert set(step) == {"loss", "task", "kd", "hint", "interact"}
    run.close()


def test_the_result_says_that_the_teachers_own_head_was_distilled(
    labelled: Path, row_server: ToyServer
) -> None:
    run = rows_run(labelled, None, row_server.address, losses={"kd": 1.0})
    assert run.finish()["kd_source"] == "head"
    run.close()
    assert "kd_source" not in rows_run(labelled).finish()


def test_a_teacher_without_a_head_is_told_of_before_it_is_asked(
    headless_teacher: Teacher, start_server: Callable[..., ToyServer]
) -> None:
    server, student = start_server(headless_teacher), ToyStudent(2)
    taps = Taps(student, {"upper": "blocks.1"})
    teacher = TeacherConfig(address=server.address)
    with pytest.raises(UnsupportedByTeacherError, match=r"has no head; losses\.kd_source: probe fits one"):
        connect(teacher, LossWeights(kd=1), TalkConfig(), student_dim=6, taps=taps, tenant="")
    connect(teacher, LossWeights(kd=1, kd_source="probe"), TalkConfig(), student_dim=6, taps=taps, tenant="")


def test_a_stream_can_not_be_probed(labelled: Path) -> None:
    sources = dict.fromkeys(("train", "valid", "test"), labelled)
    data = {**sources, "task": "classification", "features": {"ids": "int64"}, "stream": True}
    with pytest.raises(ValueError, match=r"losses\.kd_source: got probe with data\.stream, expected head"):
        make_config(labelled, "127.0.0.1:1", data=data, losses={"kd": 1, "kd_source": "probe"})
