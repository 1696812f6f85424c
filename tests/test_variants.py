"""Variants of talking: swapped middles, gates, contrasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from student_client import losses
from student_client.config import TalkConfig
from tests.test_train_run import make_config
from tests.toy_rows import all_rows, labelled, row_server, rows_run, unlabelled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.toy_server import ToyServer

__all__ = ["labelled", "row_server", "unlabelled"]

TALK = {"codec": {"message_dim": 4}, "reading": "replace", "deterministic": True}


@pytest.mark.parametrize("weights", [{"task": 1.0}, {"task": 2.0, "grounded": 0.5, "kd": 0.1}])
def test_a_swapped_step_solves_the_task_through_the_teacher(
    labelled: Path, unlabelled: Path, row_server: ToyServer, weights: dict[str, float]
) -> None:
    talk = {**TALK, "swap_probability": 1.0}
    run = rows_run(labelled, unlabelled, row_server.address, losses=weights, talk=talk)
    objective, batch = run.objective, all_rows(run)
    assert objective.talk is not None
    outcome = objective(batch)
    objective.student(**batch.student)
    heard = objective.talk(objective._taps["lower"]).decoded
    student: Any = objective.student
    expected = functional.cross_entropy(student.head(heard)[:20], batch.labels[:20])
    torch.testing.assert_close(outcome.parts["task"], expected)
    torch.testing.assert_close(
        outcome.task_loss, weights["task"] * expected + outcome.parts.get("grounded", 0) * 0.5
    )
    torch.autograd.backward(outcome.task_loss)
    grads = {name: p.grad is not None for name, p in objective.named_parameters()}
    assert not any(found for name, found in grads.items() if "student.blocks.1" in name)
    assert all(found for name, found in grads.items() if "student.blocks.1" not in name)
    objective.eval()
    torch.testing.assert_close(
        objective(batch).parts["task"], functional.cross_entropy(outcome.logits[:20], batch.labels[:20])
    )
    run.close()


def test_a_step_is_swapped_as_often_as_it_says_and_asks_nothing_else(
    labelled: Path, row_server: ToyServer
) -> None:
    talk = {**TALK, "swap_probability": 0.25}
    run = rows_run(labelled, None, row_server.address, losses={"task": 1.0}, talk=talk, epochs=100)
    batch, admitted = all_rows(run), row_server.queue.num_admitted
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(200):
            run.objective(batch)
    assert 30 <= row_server.queue.num_admitted - admitted <= 70
    run.close()


def test_swapping_reads_replaced_states_and_needs_a_teacher(labelled: Path) -> None:
    with pytest.raises(ValueError, match=r"swap_probability: got 0\.5 with reading 'beside'"):
        TalkConfig(swap_probability=0.5, reading="beside")
    talk = {"swap_probability": 0.5, "reading": "replace"}
    with pytest.raises(ValueError, match="teacher: got null"):
        make_config(labelled, None, talk=talk)
    config = make_config(labelled, "127.0.0.1:1", talk=talk)
    assert (config.talks, config.needs_teacher, config.losses.talks) == (True, True, False)
    plain = make_config(labelled, None)
    assert (plain.talks, plain.needs_teacher) == (False, False)


@pytest.mark.parametrize("target", ["models", "turn"])
def test_messages_may_be_told_apart_instead_of_drawn_together(
    labelled: Path, unlabelled: Path, row_server: ToyServer, target: str
) -> None:
    talk = {**TALK, "message_loss": "contrastive", "message_target": target, "detach_teacher": False}
    weights = {"task": 1.0, "message": 1.0}
    run = rows_run(labelled, unlabelled, row_server.address, losses=weights, talk=talk)
    objective, batch = run.objective, all_rows(run)
    got = objective(batch).parts["message"]
    assert objective.talk is not None
    assert isinstance(batch.teacher, dict)
    objective.student(**batch.student)
    lower, upper = (objective._taps[name][:, None] for name in ("lower", "upper"))
    mask = torch.ones(32, 1, dtype=torch.bool)
    if target == "turn":
        heard = objective.talk(objective._taps["lower"])
        expected = losses.message_contrast(heard.messages[0], heard.replies[0])
    else:
        seen = objective.talk.observe(batch.teacher, ["lower_message", "upper_message"])
        own = [objective.talk.student_encoder(states, mask, mask) for states in (lower, upper)]
        expected = losses.message_contrast(own[0], seen["lower_message"])
        expected = expected + losses.message_contrast(own[1], seen["upper_message"])
    torch.testing.assert_close(got, expected)
    run.close()


@pytest.mark.parametrize("detach_reply", [False, True])
def test_a_gate_adds_the_reply_to_the_students_own_state(
    labelled: Path, unlabelled: Path, row_server: ToyServer, *, detach_reply: bool
) -> None:
    talk = {**TALK, "gate": True, "detach_reply": detach_reply}
    weights = {"task": 0.0, "interact": 1.0, "grounded": 1.0}
    run = rows_run(labelled, unlabelled, row_server.address, losses=weights, talk=talk)
    objective, batch = run.objective, all_rows(run)
    assert objective.talking is not None
    gate = objective.talking.gate
    assert gate is not None
    assert gate.tolist() == [-2.0] * 6
    with torch.no_grad():
        gate.copy_(torch.arange(6) - 3.0)
    outcome = objective(batch)
    objective.student(**batch.student)
    upper, decoded = objective._taps["upper"], objective.talking.talk(objective._taps["lower"]).decoded
    entered = upper + torch.sigmoid(torch.arange(6) - 3.0) * decoded
    student: Any = objective.student
    torch.testing.assert_close(outcome.parts["interact"], losses.interaction(upper, entered))
    grounded = functional.cross_entropy(student.head(entered)[:20], batch.labels[:20])
    torch.testing.assert_close(outcome.parts["grounded"], grounded)
    torch.autograd.backward(outcome.task_loss, retain_graph=True)
    assert all(p.grad is not None for p in student.blocks.parameters())  # they are not replaced
    assert gate.grad is not None
    gate.grad = None
    torch.autograd.backward(outcome.talk_loss)
    assert (gate.grad is None) == detach_reply
    run.close()


def test_a_gate_is_trained_and_kept(labelled: Path, row_server: ToyServer) -> None:
    talk, weights = {**TALK, "gate": True}, {"grounded": 1.0}
    first, second = (
        rows_run(labelled, None, row_server.address, losses=weights, talk=talk) for _ in range(2)
    )
    list(first.train_epoch())
    second.load_state(first.state())
    assert first.objective.talking is not None
    assert second.objective.talking is not None
    gate = first.objective.talking.gate
    assert gate is not None
    assert not torch.allclose(gate, torch.tensor(-2.0))
    assert torch.equal(gate, second.objective.state_dict()["talking.gate"])
    first.close()
    second.close()
