"""The controls: replies of other rows, and replies of nobody."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from preceptor.codec import resample
from student_client.config import LossWeights, TalkConfig
from student_client.controls import ControlledTalk, others
from student_client.talk_config import check_together
from tests.test_train_run import make_config
from tests.toy import STUDENT_DIM
from tests.toy_rows import all_rows, labelled, row_server, rows_run, unlabelled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from student_client import TeacherTalk
    from tests.toy_server import ToyServer

__all__ = ["labelled", "row_server", "unlabelled"]

LOSSES = {"interact": 1.0, "grounded": 1.0}


def _controlled(talk: TeacherTalk, control: Any) -> ControlledTalk:
    """Returns a control with the parameters of a talk."""
    fields = {"student_dim": STUDENT_DIM, "teacher_dim": 8, "reading": talk.reading}
    controlled = ControlledTalk(talk.client, talk.spec, control=control, **fields)
    controlled.load_state_dict(talk.state_dict())
    return controlled


def _states(num_rows: int = 5, length: int = 3) -> tuple[Tensor, Tensor]:
    mask = torch.ones(num_rows, length, dtype=torch.bool)
    mask[1:3, 2:] = False
    return torch.randn(num_rows, length, STUDENT_DIM), mask


def test_each_row_is_given_another_one_and_every_row_is_given_once() -> None:
    seen = set()
    for num_rows in (2, 3, 7):
        for _ in range(20):
            order = others(num_rows)
            assert sorted(order.tolist()) == list(range(num_rows))
            assert (order != torch.arange(num_rows)).all()
            seen.add(tuple(order.tolist()))
    assert len(seen) > 10
    assert others(1).tolist() == [0]


@pytest.mark.parametrize("message_len", [2, None])
def test_a_shuffled_reply_is_what_the_teacher_said_to_another_row(
    server: ToyServer, connect: Callable[..., TeacherTalk], message_len: int | None
) -> None:
    talk = connect(server.address, message_len=message_len)
    shuffled = _controlled(talk, "shuffled")
    states, mask = _states()
    torch.manual_seed(3)
    order = others(5)
    torch.manual_seed(3)
    heard = shuffled(states, mask=mask)
    told = talk(states, mask=mask)
    expected = resample(told.replies[0][order], told.message_mask[order], told.message_mask)
    torch.testing.assert_close(
        heard.replies[0][told.message_mask], expected[told.message_mask], atol=1e-5, rtol=1e-4
    )
    assert not torch.allclose(heard.decoded, told.decoded, atol=1e-3)
    assert len(heard.receipts) == 1
    shuffled.close()


def test_the_gradient_of_a_shuffled_reply_goes_to_the_row_that_said_it(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    shuffled = _controlled(connect(server.address), "shuffled")
    states, mask = _states()
    states.requires_grad_()
    torch.manual_seed(3)
    order = others(5)
    torch.manual_seed(3)
    torch.autograd.backward(shuffled(states, mask=mask).decoded[0].square().sum())
    assert states.grad is not None
    moved = states.grad.abs().sum((1, 2)).nonzero().flatten().tolist()
    assert moved == [int(order[0])]
    shuffled.close()


def test_a_row_that_is_alone_hears_nothing(server: ToyServer, connect: Callable[..., TeacherTalk]) -> None:
    shuffled = _controlled(connect(server.address), "shuffled")
    heard = shuffled(torch.randn(1, 3, STUDENT_DIM))
    assert heard.replies[0].eq(0).all()
    torch.autograd.backward(heard.decoded.sum())
    shuffled.close()


@pytest.mark.parametrize("reading", ["replace", "beside"])
def test_without_a_teacher_the_codec_answers_itself(
    connect: Callable[..., TeacherTalk], reading: str
) -> None:
    talk = connect("127.0.0.1:1", reading=reading)  # where nobody is
    alone = _controlled(talk, "no_teacher")
    states, mask = _states()
    inputs = None if reading == "replace" else ["a text"] * 5
    heard = alone(states, mask=mask, inputs=inputs, num_rounds=2)
    codec, message_mask = alone.teacher_codec, heard.message_mask
    reply = codec.encoder(functional.gelu(codec.decoder(heard.messages[0])), message_mask, message_mask)
    torch.testing.assert_close(heard.replies[0], reply)
    assert len(heard.replies) == 2
    assert heard.receipts == ()
    torch.autograd.backward(heard.decoded.sum())
    assert all(p.grad is not None for p in alone.parameters())
    assert sum(p.numel() for p in alone.parameters()) == sum(p.numel() for p in talk.parameters())


def test_without_a_teacher_nothing_is_said_to_it(
    labelled: Path, unlabelled: Path, row_server: ToyServer
) -> None:
    admitted = row_server.queue.num_admitted
    talk = {"codec": {"message_dim": 4}, "control": "no_teacher", "reading": "add"}
    run = rows_run(labelled, unlabelled, row_server.address, losses=LOSSES, talk=talk)
    before = {name: p.clone() for name, p in run.objective.named_parameters()}
    list(run.train_epoch())
    assert row_server.queue.num_admitted == admitted
    assert [name for name, p in run.objective.named_parameters() if torch.equal(p, before[name])] == []
    assert run.finish()["waiting_s"] == 0
    run.close()


def test_a_control_learns_what_its_losses_say_and_is_resumed_exactly(
    labelled: Path, row_server: ToyServer
) -> None:
    talk = {"codec": {"message_dim": 4}, "control": "shuffled", "deterministic": True}
    first, second = (rows_run(labelled, None, row_server.address, losses=LOSSES, talk=talk) for _ in range(2))
    next(iter(first.train_epoch()))
    state = copy.deepcopy(first.state())
    rest = list(first.train_epoch())
    second.load_state(state)
    assert list(second.train_epoch()) == rest
    assert len(rest) == 1
    plain = rows_run(labelled, None, row_server.address, losses=LOSSES, talk={**talk, "control": None})
    assert plain.objective.state_dict().keys() == first.objective.state_dict().keys()
    torch.manual_seed(0)
    told = plain.objective(all_rows(plain)).parts["interact"]
    assert not torch.allclose(first.objective(all_rows(first)).parts["interact"], told)
    for run in (first, second, plain):
        run.close()


@pytest.mark.parametrize("control", ["shuffled", "no_teacher"])
def test_a_control_can_be_copied_and_pickled(
    server: ToyServer, connect: Callable[..., TeacherTalk], control: str
) -> None:
    controlled = _controlled(connect(server.address), control)
    for each in (copy.deepcopy(controlled), pickle.loads(pickle.dumps(controlled))):  # noqa: S301
        assert each.control == control
        assert each(torch.randn(2, 3, STUDENT_DIM)).decoded.shape == (2, 3, STUDENT_DIM)
        each.close()


@pytest.mark.parametrize("losses", [{"state": 1}, {"message": 1}])
def test_what_only_a_teacher_can_say_is_refused_without_one(labelled: Path, losses: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"talk\.control: got no_teacher with losses\.message"):
        make_config(labelled, "127.0.0.1:1", losses=losses, talk={"control": "no_teacher"})
    of_turn = TalkConfig(control="no_teacher", message_target="turn")
    check_together(LossWeights(message=1.0), of_turn)


@pytest.mark.parametrize("losses", [{"kd": 1.0}, {"hint": 1.0}, {"message": 1.0, "state": 1.0}])
def test_a_control_of_replies_that_nobody_hears_is_refused(tmp_path: Path, losses: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"talk\.control: got shuffled, expected null"):
        make_config(tmp_path / "table.csv", "127.0.0.1:1", losses=losses, talk={"control": "shuffled"})
    with pytest.raises(ValueError, match=r"talk\.gate: got true, expected false"):
        make_config(tmp_path / "table.csv", "127.0.0.1:1", losses=losses, talk={"gate": True})
