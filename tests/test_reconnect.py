"""Replicas that die, drain, change or have no room: the student gets the same answers or a clear error."""

from __future__ import annotations

import random
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

from student_client import (
    ClientOptions,
    OverloadedError,
    TeacherChangedError,
    TeacherUnavailableError,
)
from tests.toy import STUDENT_DIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.teacher.families.base import Teacher
    from student_client import TeacherTalk
    from tests.toy_server import ToyServer

Gradients = dict[str, torch.Tensor]
IMPATIENT = ClientOptions(deadline_s=0.5, initial_backoff_s=0.01)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def connect(connect: Callable[..., TeacherTalk]) -> Callable[..., TeacherTalk]:
    """Connects so that what is equal is equal to the last bit, whoever shares a batch."""
    return partial(connect, deterministic=True)


def _states() -> torch.Tensor:
    return torch.randn(2, 4, STUDENT_DIM, generator=torch.Generator().manual_seed(0))


def _gradients(talk: TeacherTalk, between: Callable[[], None] = lambda: None) -> Gradients:
    """Talks about the same batch, lets something happen after the reply, and returns all gradients."""
    talk.zero_grad()
    states = _states().requires_grad_()
    heard = talk(states)
    between()
    torch.autograd.backward(heard.decoded.square().sum())
    gradients = {name: parameter.grad for name, parameter in talk.named_parameters()}
    return {name: grad.clone() for name, grad in {**gradients, "": states.grad}.items() if grad is not None}


def _equal(first: Gradients, second: Gradients) -> bool:
    assert len(first) > 8
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _in_use(talk: TeacherTalk, servers: list[ToyServer]) -> ToyServer:
    """Returns the server that a talk's stream leads to."""
    conversation = talk.conversation._conversation
    assert conversation is not None
    assert conversation._stream is not None
    target = conversation._stream.target
    return next(server for server in servers if server.address == target)


def _restart(server: ToyServer) -> None:
    server.kill()
    server.start()


def test_gradients_survive_a_restart_after_the_reply(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address)
    undisturbed = _gradients(talk)
    assert talk.conversation.num_reconnects == 0
    assert _equal(_gradients(talk, lambda: _restart(server)), undisturbed)
    assert talk.conversation.num_reconnects == 1


def test_a_turn_without_a_reply_is_sent_again(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], pool: ThreadPoolExecutor
) -> None:
    server = start_server()
    talk = connect(server.address)
    undisturbed = _gradients(talk)
    server.queue.await_arrivals(2)
    server.queue.gate.clear()
    pending = pool.submit(_gradients, talk)
    server.queue.await_arrivals()
    _restart(server)
    assert _equal(pending.result(60), undisturbed)
    assert talk.conversation.num_reconnects == 1


def test_gradients_survive_a_restart_while_they_are_computed(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], pool: ThreadPoolExecutor
) -> None:
    server = start_server()
    talk = connect(server.address)
    undisturbed = _gradients(talk)
    server.queue.await_arrivals(2)
    pending = pool.submit(_gradients, talk, server.queue.gate.clear)
    server.queue.await_arrivals(2)
    _restart(server)
    assert _equal(pending.result(60), undisturbed)


def test_another_replica_takes_over(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    servers = [start_server(), start_server()]
    talk = connect(*(server.address for server in servers))
    undisturbed = _gradients(talk)
    first = _in_use(talk, servers)
    assert _equal(_gradients(talk, first.kill), undisturbed)
    assert _in_use(talk, servers) is not first
    first.start()


def test_a_draining_replica_is_left_without_an_error(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    servers = [start_server(), start_server()]
    talk = connect(*(server.address for server in servers))
    undisturbed = _gradients(talk)
    first = _in_use(talk, servers)
    first.drain()
    stream = talk.conversation._conversation._stream  # type: ignore[union-attr]
    first.wait_until(lambda: not stream.usable)  # type: ignore[union-attr]
    assert _equal(_gradients(talk), undisturbed)
    assert _in_use(talk, servers) is not first
    first.wait_until(lambda: not first.servicer._visits)


def test_turns_in_flight_are_answered_by_the_draining_replica(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], pool: ThreadPoolExecutor
) -> None:
    servers = [start_server(), start_server()]
    talk = connect(*(server.address for server in servers))
    expected = talk(_states()).decoded
    first = _in_use(talk, servers)
    first.queue.await_arrivals()
    first.queue.gate.clear()
    old = pool.submit(lambda: talk(_states()).decoded)
    first.queue.await_arrivals()
    first.drain()
    stream = talk.conversation._conversation._stream  # type: ignore[union-attr]
    first.wait_until(lambda: not stream.usable)  # type: ignore[union-attr]
    assert torch.equal(talk(_states()).decoded, expected)
    first.queue.gate.set()
    assert torch.equal(old.result(60), expected)
    assert talk.conversation.num_reconnects == 1


def test_draining_without_another_replica_is_unavailable(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    server.drain()
    with pytest.raises(TeacherUnavailableError, match="this replica is going away"):
        connect(server.address, options=IMPATIENT)(_states())


def test_another_teacher_at_the_same_address_is_refused(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], other_teacher: Teacher
) -> None:
    server = start_server()
    talk = connect(server.address)
    talk(_states())
    server.kill()
    server.teacher = other_teacher
    server.start()
    with pytest.raises(TeacherChangedError, match=r"expected_fingerprint: got .*, this teacher's is"):
        talk(_states())


def _fill(server: ToyServer, talk: TeacherTalk, pool: ThreadPoolExecutor) -> list[Future[torch.Tensor]]:
    """Has one turn held by the teacher and one waiting, which is all the room there is."""
    server.queue.gate.clear()
    pending = []
    for _ in range(2):
        pending.append(pool.submit(lambda: talk(_states()).decoded))
        server.queue.await_arrivals()
        if len(pending) == 1:
            server.wait_until(lambda: server.queue.num_queued_tokens == 0)
    return pending


def test_overloaded_turns_are_sent_again(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], pool: ThreadPoolExecutor
) -> None:
    server = start_server(max_queued_tokens=1)
    talk = connect(server.address)
    expected = talk(_states()).decoded
    server.queue.await_arrivals()
    pending = _fill(server, talk, pool)
    pending.append(pool.submit(lambda: talk(_states()).decoded))
    server.queue.await_refusals()
    server.queue.gate.set()
    assert all(torch.equal(each.result(60), expected) for each in pending)
    assert talk.conversation.num_reconnects == 0


def test_a_teacher_that_never_has_room_is_overloaded(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], pool: ThreadPoolExecutor
) -> None:
    server = start_server(max_queued_tokens=1)
    pending = _fill(server, connect(server.address), pool)
    with pytest.raises(OverloadedError, match="the teacher's queue: got 4 tokens more than 4") as caught:
        connect(server.address, options=IMPATIENT)(_states())
    assert caught.value.retry_after_s > 0
    server.queue.gate.set()
    assert all(each.result(60).shape == _states().shape for each in pending)
    full = start_server(max_conversations=0)
    with pytest.raises(OverloadedError, match="conversations: got one more, expected at most 0"):
        connect(full.address, options=IMPATIENT)(_states())


def test_a_restart_leaves_the_loops_random_numbers_alone(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address)
    before = (random.getstate(), torch.get_rng_state().tolist())
    _gradients(talk, lambda: _restart(server))
    assert (random.getstate(), torch.get_rng_state().tolist()) == before
