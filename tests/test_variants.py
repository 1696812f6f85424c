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

TALK = {"codec": {"message_dim": 4}, "deterministic": True}


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
    talk = {"swap_probability": 0.5}
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
