"""The talk inside PyTorch's machinery: everything behaves as if the teacher were in this process."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from preceptor.terms import ObservationKind
from tests.local_talk import Heard, assert_close, gradients_of, local_talk, loss_of
from tests.toy import STUDENT_DIM
from tests.toy_frames import ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.teacher.families.base import Teacher
    from student_client import Talk, TeacherTalk
    from tests.toy_server import ToyServer

Speak = "Callable[[TeacherTalk, Tensor], Talk | Heard]"
TEACHER_SIDE = "teacher_codec."


def _batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    states, target = torch.randn(2, 3, 4, STUDENT_DIM, generator=torch.Generator().manual_seed(seed))
    return states.requires_grad_(), target


def _ways(teacher: Teacher) -> tuple[Callable[[TeacherTalk, Tensor], Talk | Heard], ...]:
    """Talking to the service, and the same in this process."""
    return (lambda talk, states: talk(states), lambda talk, states: local_talk(talk, teacher, states))


def _grads(talk: TeacherTalk) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in talk.named_parameters() if each.grad is not None}


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_without_gradients_no_gradient_turn_is_sent(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address)
    states, _ = _batch()
    with torch.no_grad():
        quiet = talk(states)
        seen = talk.observe({"ids": ids()}, ["lower_message"])["lower_message"]
    assert not quiet.decoded.requires_grad
    assert not seen.requires_grad
    assert len(server.engine.graphs) == 0
    assert torch.equal(talk(states).decoded, quiet.decoded)
    assert len(server.engine.graphs) == 1


def test_frozen_parts_ask_for_no_gradients(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address).requires_grad_(requires_grad=False)
    states, _ = _batch()
    assert not talk(states.detach()).decoded.requires_grad
    assert not talk.observe({"ids": ids()}, ["state_consistency"])["state_consistency"].requires_grad
    assert len(server.engine.graphs) == 0
    (gradient,) = torch.autograd.grad(talk(states).decoded.sum(), states)
    assert gradient.ne(0).any()


def test_gradients_may_stop_at_the_reply(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address)
    states, _ = _batch()
    heard = talk(states, num_rounds=2, through_teacher=False)
    gradients = gradients_of(heard.decoded.square().sum(), talk)
    assert set(gradients) == {name for name, _ in talk.named_parameters() if "student_decoder" in name}
    assert torch.equal(heard.decoded, talk(states, num_rounds=2).decoded)


def test_gradients_accumulate_over_batches(
    server: ToyServer, connect: Callable[..., TeacherTalk], tiny_teacher: Teacher
) -> None:
    talk = connect(server.address)
    accumulated = []
    for way in _ways(tiny_teacher):
        talk.zero_grad()
        for seed in range(3):
            states, target = _batch(seed)
            torch.autograd.backward(loss_of(way(talk, states), target) / 3)
        accumulated.append(_grads(talk))
    assert _same(*accumulated)
    assert any(name.startswith(TEACHER_SIDE) for name in accumulated[0])


def test_a_retained_graph_may_be_used_twice(server: ToyServer, connect: Callable[..., TeacherTalk]) -> None:
    talk = connect(server.address)
    states, target = _batch()
    loss = loss_of(talk(states), target)
    torch.autograd.backward(loss, retain_graph=True)
    once = _grads(talk)
    torch.autograd.backward(loss)
    for name, gradient in _grads(talk).items():
        torch.testing.assert_close(gradient, 2 * once[name])


def test_second_derivatives_are_refused_as_they_can_not_be_had(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(server.address)
    states, _ = _batch()
    (gradient,) = torch.autograd.grad(talk(states).decoded.square().sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(gradient.square().sum())


def test_a_checkpointed_talk_has_the_same_gradients(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(server.address)
    states, target = _batch()
    plain = gradients_of(loss_of(talk(states), target), talk, states=states)
    again = checkpoint(lambda each: loss_of(talk(each), target), states, use_reentrant=False)
    assert isinstance(again, Tensor)
    torch.autograd.backward(again)
    assert _same({**_grads(talk), "states": states.grad}, plain)  # type: ignore[dict-item]


def test_overflowing_gradients_become_nan_without_a_call(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address)
    states, _ = _batch()
    heard = talk(states)
    seen = talk.observe({"ids": ids()}, ["state_consistency"])["state_consistency"]
    admitted = server.queue.num_admitted
    torch.autograd.backward((heard.decoded.sum() + seen.sum()) * torch.inf)
    assert server.queue.num_admitted == admitted
    reached = [*talk.teacher_codec.parameters(), *talk.student_encoder.parameters()]
    assert all(each.grad is not None and each.grad.isnan().all() for each in reached)


def test_gradient_scaling_skips_the_step_that_overflows(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(server.address)
    optimizer = torch.optim.SGD(talk.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-120)
    states, target = _batch()
    before = {name: each.detach().clone() for name, each in talk.named_parameters()}
    changed = []
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(100 * loss_of(talk(states), target)))
        scaler.step(optimizer)
        scaler.update()
        changed.append(
            [name for name, each in talk.named_parameters() if not torch.equal(each, before[name])]
        )
    assert changed == [[], list(before)]


@pytest.mark.parametrize("name", ["teacher_codec.decoder.body.weight", "teacher_codec.encoder.body.weight"])
def test_a_codec_changed_before_the_backward_pass_is_an_error_as_in_process(
    server: ToyServer, connect: Callable[..., TeacherTalk], tiny_teacher: Teacher, name: str
) -> None:
    talk = connect(server.address)
    states, target = _batch()
    for way in _ways(tiny_teacher):
        loss = loss_of(way(talk, states), target)
        with torch.no_grad():
            talk.get_parameter(name).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.backward(loss)


def test_content_that_changes_behind_autograds_back_is_noticed(
    server: ToyServer, connect: Callable[..., TeacherTalk], tiny_teacher: Teacher
) -> None:
    talk = connect(server.address)
    states, _ = _batch()
    before = talk(states).decoded
    talk.get_parameter("teacher_codec.encoder.body.bias").data[0] += 1
    after = talk(states).decoded
    assert not torch.equal(after, before)
    assert torch.equal(after, local_talk(talk, tiny_teacher, states).decoded)
    assert talk(states).receipts[0].codec_version == 2


def test_a_codec_that_did_not_change_is_sent_once(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(server.address)
    states, _ = _batch()
    assert {talk(states, num_rounds=2).receipts[-1].codec_version for _ in range(3)} == {1}
    sizes = [talk(states).receipts[0].request_bytes for _ in range(2)]
    assert sizes[0] == sizes[1]


def test_autocast_is_that_of_the_same_graph_in_process(
    server: ToyServer, connect: Callable[..., TeacherTalk], tiny_teacher: Teacher
) -> None:
    talk = connect(server.address)
    states, target = _batch()
    results = []
    for way in _ways(tiny_teacher):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            heard = way(talk, states)
        assert heard.replies[0].dtype is heard.decoded.dtype is torch.bfloat16
        loss = loss_of(heard, target)
        results.append({"": heard.decoded, **gradients_of(loss, talk, states=states)})
    assert results[0].keys() == results[1].keys()
    for name, expected in results[1].items():
        assert_close(results[0][name], expected, 1e-6)


def test_losses_of_messages_and_states_train_the_teachers_side(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(server.address)
    optimizer = torch.optim.Adam(talk.parameters(), lr=0.02)
    losses = []
    for _ in range(15):
        values = talk.observe({"ids": ids()}, [ObservationKind.STATE_CONSISTENCY])
        loss = values["state_consistency"].mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("is_backward_run", [True, False])
def test_what_a_turn_returned_is_freed_with_its_graph(
    server: ToyServer, connect: Callable[..., TeacherTalk], *, is_backward_run: bool
) -> None:
    talk = connect(server.address)
    states, target = _batch()

    def talk_once() -> list[weakref.ref[Tensor]]:
        heard = talk(states)
        seen = talk.observe({"ids": ids()}, ["lower_message", "state_consistency"])
        if is_backward_run:
            loss = loss_of(heard, target) + sum(each.mean() for each in seen.values())
            torch.autograd.backward(loss)
        return [weakref.ref(each) for each in (*heard.replies, *seen.values())]

    returned = talk_once()
    assert len(returned) == 3
    gc.collect()
    assert [each() for each in returned] == [None] * 3


def test_an_empty_batch_is_refused_before_it_is_sent(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(server.address)
    with pytest.raises(ValueError, match="hidden_states: got no rows, expected at least one"):
        talk(torch.ones(0, 4, STUDENT_DIM))
