"""Parity: talking to a served teacher is the same computation as one autograd graph in this process."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from preceptor import wire
from preceptor.codec import resample
from preceptor.compression import WireType, encode
from preceptor.distance import state_distance
from preceptor.terms import ObservationKind, Reading
from tests.local_talk import SPLIT_LAYER, Heard, assert_close, gradients_of, local_talk, loss_of
from tests.toy import STUDENT_DIM
from tests.toy_frames import MESSAGE_DIM, ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.teacher.families.base import Teacher
    from student_client import Talk, TeacherTalk
    from tests.toy_server import ToyServer

BATCH, LENGTH = 3, 4
FLOAT32 = 1e-6
# Relative to the largest value of each tensor; narrow types round messages, replies and gradients.
TOLERANCES = {
    WireType.FLOAT32: FLOAT32,
    WireType.FLOAT16: 4e-3,
    WireType.BFLOAT16: 3e-2,
    WireType.INT8: 3e-2,
}
RAGGED = torch.tensor([[True, True, True, False], [True, False, False, False], [True] * 4])
READINGS = list(Reading)
INPUTS = {"ids": ids(BATCH, 5)}


def _batch(batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """States of a student, as a leaf, and states to compare with."""
    states, target = torch.randn(2, batch, LENGTH, STUDENT_DIM, generator=torch.Generator().manual_seed(1))
    return states.requires_grad_(), target


def _compare(
    talk: TeacherTalk,
    got: Heard | Talk,
    expected: Heard,
    states: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    tolerance: float = FLOAT32,
) -> None:
    """Compares all that was heard, the loss, and every gradient of it."""
    for mine, theirs in zip(got.messages + got.replies, expected.messages + expected.replies, strict=True):
        assert_close(mine, theirs, tolerance)
    assert_close(got.decoded, expected.decoded, tolerance)
    losses = [loss_of(each, target, mask) for each in (got, expected)]
    assert_close(losses[0], losses[1], tolerance)
    gradients, wanted = (gradients_of(loss, talk, states=states) for loss in losses)
    assert gradients.keys() == wanted.keys() == {*dict(talk.named_parameters()), "states"}
    for name, gradient in wanted.items():
        assert_close(gradients[name], gradient, tolerance)


@pytest.mark.parametrize("mask", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("num_rounds", [1, 2])
@pytest.mark.parametrize("message_len", [None, 1, 3])
@pytest.mark.parametrize("reading", READINGS)
def test_remote_is_local(
    server: ToyServer,
    connect: Callable[..., TeacherTalk],
    tiny_teacher: Teacher,
    reading: Reading,
    message_len: int | None,
    num_rounds: int,
    mask: Tensor | None,
) -> None:
    talk = connect(server.address, reading=reading, message_len=message_len)
    states, target = _batch()
    heard = talk(states, mask=mask, inputs=INPUTS, num_rounds=num_rounds)
    expected = local_talk(talk, tiny_teacher, states, mask=mask, inputs=INPUTS, num_rounds=num_rounds)
    assert len(heard.replies) == len(heard.receipts) == num_rounds
    _compare(talk, heard, expected, states, target, mask)


@pytest.mark.parametrize("wire_type", TOLERANCES)
@pytest.mark.parametrize("reading", READINGS)
def test_a_narrow_wire_is_local_within_its_precision(
    server: ToyServer,
    connect: Callable[..., TeacherTalk],
    tiny_teacher: Teacher,
    reading: Reading,
    wire_type: WireType,
) -> None:
    talk = connect(server.address, reading=reading, hidden_dim=5, compression=wire_type)
    states, target = _batch()
    heard = talk(states, inputs=INPUTS)
    expected = local_talk(talk, tiny_teacher, states, inputs=INPUTS)
    arrived = wire.decode(encode(heard.replies[0], wire_type), field="reply")
    assert_close(heard.replies[0], arrived, FLOAT32)  # it was rounded, and rounding it again changes nothing
    _compare(talk, heard, expected, states, target, tolerance=TOLERANCES[wire_type])


@pytest.mark.parametrize("reading", READINGS)
def test_a_large_batch_travels_in_several_turns_and_gives_the_same(
    server: ToyServer, connect: Callable[..., TeacherTalk], tiny_teacher: Teacher, reading: Reading
) -> None:
    talk = connect(server.address, reading=reading, message_len=None, max_frame_bytes=4096 + 300)
    states, target = _batch(13)
    mask = torch.arange(LENGTH) < (torch.arange(13) % LENGTH + 1)[:, None]
    inputs = {"ids": ids(13, 5)}
    heard = talk(states, mask=mask, inputs=inputs)
    assert len(heard.receipts) > 2
    expected = local_talk(talk, tiny_teacher, states, mask=mask, inputs=inputs)
    # The codec's gradients are added up turn by turn, in another order.
    _compare(talk, heard, expected, states, target, mask, tolerance=10 * FLOAT32)


def test_a_student_without_positions_talks_too(
    server: ToyServer, connect: Callable[..., TeacherTalk], tiny_teacher: Teacher
) -> None:
    talk = connect(server.address, message_len=3)
    states, target = (each[:, 0] for each in _batch())
    heard = talk(states)
    expected = local_talk(talk, tiny_teacher, states[:, None])
    assert heard.decoded.shape == states.shape
    assert_close(heard.decoded, expected.decoded[:, 0], FLOAT32)
    got, wanted = (
        gradients_of(loss_of(each, goal), talk)
        for each, goal in ((heard, target), (expected, target[:, None]))
    )
    assert all(torch.equal(got[name], gradient) for name, gradient in wanted.items())


def test_gradients_are_those_of_finite_differences(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(server.address, reading="beside")
    states, target = _batch()
    gradients = gradients_of(loss_of(talk(states, inputs=INPUTS), target), talk, states=states)
    leaves = {**dict(talk.named_parameters()), "states": states}
    for name, leaf in leaves.items():
        step = 1e-2 * gradients[name] / gradients[name].norm()  # where the loss changes most
        with torch.no_grad():
            ends = []
            for sign in (1, -2):
                leaf.add_(sign * step)
                ends.append(float(loss_of(talk(states, inputs=INPUTS), target)))
            leaf.add_(step)
        slope = (ends[0] - ends[1]) / 2e-2
        assert slope == pytest.approx(float(gradients[name].norm()), rel=0.02)


class _Student(nn.Module):
    """Two linear layers; the talk is about what is between them."""

    def __init__(self, talk: TeacherTalk) -> None:
        super().__init__()
        self.lower, self.upper = nn.Linear(5, STUDENT_DIM), nn.Linear(STUDENT_DIM, STUDENT_DIM)
        self.talk = talk

    def loss(self, x: Tensor, teacher: Teacher | None) -> Tensor:
        states = torch.tanh(self.lower(x))
        if teacher is None:
            heard = self.talk(states, inputs=INPUTS, num_rounds=2)
        else:
            heard = local_talk(self.talk, teacher, states, inputs=INPUTS, num_rounds=2)
        return loss_of(heard, self.upper(states))


def test_twenty_steps_of_adamw_end_at_the_same_weights(
    server: ToyServer, connect: Callable[..., TeacherTalk], tiny_teacher: Teacher
) -> None:
    remote = _Student(connect(server.address, reading="beside"))
    local = copy.deepcopy(remote)
    start = copy.deepcopy(local.state_dict())
    for student, teacher in ((remote, None), (local, tiny_teacher)):
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(2)
        for _ in range(20):
            optimizer.zero_grad()
            torch.autograd.backward(student.loss(torch.randn(BATCH, LENGTH, 5, generator=generator), teacher))
            optimizer.step()
    for name, weight in local.state_dict().items():
        assert not torch.equal(weight, start[name])
        assert_close(remote.state_dict()[name], weight, 1e-5)


OBSERVED = (
    ObservationKind.LOWER_MESSAGE,
    ObservationKind.UPPER_MESSAGE,
    ObservationKind.STATE_CONSISTENCY,
    ObservationKind.LOWER_STATE,
    ObservationKind.UPPER_STATE,
    ObservationKind.POOLED_STATE,
    ObservationKind.LOGITS,
)


def _local_observations(talk: TeacherTalk, teacher: Teacher, mask: Tensor | None) -> dict[str, Tensor]:
    lower = teacher.lower(INPUTS, SPLIT_LAYER)
    upper = teacher.upper(lower, SPLIT_LAYER)
    if talk.spec.message_len is not None:
        mask = torch.ones(BATCH, talk.spec.message_len, dtype=torch.bool)
    mask = lower.mask if mask is None else mask
    codec = talk.teacher_codec
    targets = [resample(each.hidden_states, each.mask, mask) for each in (lower, upper)]
    messages = [codec.encoder.body(target) for target in targets]
    distances = [
        state_distance(codec.decoder(message), target, mask)
        for message, target in zip(messages, targets, strict=True)
    ]
    return {
        "lower_message": messages[0] * mask[..., None],
        "upper_message": messages[1] * mask[..., None],
        "state_consistency": (distances[0] + distances[1]) / 2,
        "lower_state": lower.hidden_states,
        "upper_state": upper.hidden_states,
        "mask": lower.mask,
        "pooled_state": upper.hidden_states.mean(1),
        "logits": teacher.head(upper),
    }


@pytest.mark.parametrize("max_frame_bytes", [4 << 20, 4096 + 60], ids=["whole", "split"])
@pytest.mark.parametrize(
    ("message_len", "mask"),
    [(None, None), (None, RAGGED), (1, None), (3, None)],
    ids=["free", "ragged", "one", "three"],
)
def test_what_the_teacher_sees_is_local_too(
    server: ToyServer,
    connect: Callable[..., TeacherTalk],
    tiny_teacher: Teacher,
    message_len: int | None,
    mask: Tensor | None,
    max_frame_bytes: int,
) -> None:
    talk = connect(server.address, message_len=message_len, max_frame_bytes=max_frame_bytes)
    got = talk.observe(INPUTS, OBSERVED, message_mask=mask)
    expected = _local_observations(talk, tiny_teacher, mask)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(got[name], value, FLOAT32)
    differentiable = [kind for kind in OBSERVED if kind.needs_codec]
    assert {name for name, value in got.items() if value.requires_grad} == set(differentiable)
    weights = {kind: torch.randn(expected[kind].shape) for kind in differentiable}
    gradients, wanted = (
        gradients_of(torch.stack([(weights[kind] * each[kind]).sum() for kind in weights]).sum(), talk)
        for each in (got, expected)
    )
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert_close(gradients[name], gradient, FLOAT32)


def test_some_observations_need_no_others(server: ToyServer, connect: Callable[..., TeacherTalk]) -> None:
    talk = connect(server.address)
    assert set(talk.observe(INPUTS, ["logits"])) == {"logits"}
    message = talk.observe(INPUTS, ["lower_message"])["lower_message"]
    assert message.shape == (BATCH, 2, MESSAGE_DIM)
    gradients = gradients_of(message.sum(), talk)
    assert set(gradients) == {"teacher_codec.encoder.body.weight", "teacher_codec.encoder.body.bias"}


def test_an_unknown_kind_is_refused_by_name(connect: Callable[..., TeacherTalk]) -> None:
    talk = connect("127.0.0.1:1")
    for ask in (talk.observe, talk.read_ahead):
        with pytest.raises(ValueError, match="kinds: got 'nope', expected some of lower_message, upper_mess"):
            ask(INPUTS, ["logits", "nope"])
