"""A replica that goes away and what it says of itself and others, under a real gRPC server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc

from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from services.teacher.directory import Report
from services.teacher.errors import Status
from tests.toy_frames import backward, exchange, opening, set_codec
from tests.toy_server import RawStudent

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.toy_server import ToyServer


def test_draining_tells_everybody_and_takes_nobody(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    with RawStudent(server.address) as student:
        student.ask(opening())
        server.drain(2.5)
        assert student.receive().draining.closes_in_ms == 2500
        with RawStudent(server.address) as late:
            failed = late.ask(opening()).failed
            assert (failed.turn, failed.reason) == (0, pb.REASON_DRAINING)
            assert failed.status_code == Status.UNAVAILABLE
            assert late.rest() == []
        assert student.ask(set_codec(), exchange(1)).HasField("reply")
        assert student.ask(backward(1)).HasField("gradients")


def test_a_drain_ends_conversations_in_time_and_answers_what_they_asked(
    start_server: Callable[..., ToyServer],
) -> None:
    server = start_server()
    with RawStudent(server.address) as student:
        student.ask(opening())
        server.queue.gate.clear()
        student.send(set_codec(), exchange(1), exchange(2))
        server.queue.await_arrivals(2)
        server.drain(0.0)
        server.drain(1000.0)  # what was said stands
        assert student.receive().draining.closes_in_ms == 0
        server.wait_until(lambda: not server.servicer._readings)
        student.send(exchange(3))  # too late
        server.queue.gate.set()
        assert [answer.reply.turn for answer in student.rest()] == [1, 2]
    server.wait_until(lambda: not server.servicer._visits)


def test_a_replica_says_how_it_is(start_server: Callable[..., ToyServer]) -> None:
    server = start_server(max_conversations=7)
    limits = server.config.limits
    idle = Report("here:1", 0, 0, 7, limits.max_queued_tokens)
    assert server.servicer.report("here:1") == idle
    with RawStudent(server.address) as student:
        student.ask(opening())
        server.drain(1.0)
        assert server.servicer.report("here:1") == replace(idle, num_conversations=1, draining=True)


def test_a_replica_names_those_it_was_told_of(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    question = pb.FindReplicasRequest(opens_conversation=True)
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = TeacherServiceStub(channel)  # type: ignore[no-untyped-call]
        assert list(stub.FindReplicas(question).replicas) == []

        async def learn() -> None:
            server.servicer.learn([Report("full:1", 5, 0, 5, 10), Report("here:1", 0, 2, 5, 10)])

        server.call(learn())
        found = stub.FindReplicas(question).replicas
    assert [(each.address, each.num_conversations, each.queued_tokens) for each in found] == [
        ("here:1", 0, 2),
        ("full:1", 5, 0),
    ]
