"""The servicer under a real gRPC server, spoken to in hand-written frames."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch

import preceptor
from preceptor import wire
from preceptor.codec import CodecSpec
from preceptor.terms import ObservationKind
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1 import tensor_pb2 as tensors
from services.teacher import reading
from services.teacher.loading import build_engine
from services.teacher.servicer import TeacherServicer
from tests.toy import HIDDEN, NUM_BLOCKS
from tests.toy_frames import (
    backward,
    close,
    codec_state,
    exchange,
    ids,
    message,
    observe,
    opening,
    set_codec,
)
from tests.toy_server import RawStudent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher
    from tests.toy_server import ToyServer


def _is_empty(server: ToyServer) -> bool:
    return not server.servicer._visits and len(server.engine.graphs) == 0


def test_the_teacher_is_described(server: ToyServer, tiny_teacher: Teacher) -> None:
    with RawStudent(server.address) as student:
        response = student.describe()
    teacher, facts = response.teacher, tiny_teacher.facts
    assert (teacher.name, teacher.family, teacher.modality) == ("toy-0", "module", pb.MODALITY_TENSORS)
    assert (teacher.num_layers, teacher.hidden_size) == (NUM_BLOCKS, HIDDEN)
    assert list(teacher.talking_layers) == [0, 1, 2, 3]
    assert teacher.default_split_layer == 1
    assert teacher.data_type == tensors.DATA_TYPE_FLOAT32
    assert (teacher.num_parameters, teacher.fingerprint) == (facts.num_parameters, facts.fingerprint)
    assert list(teacher.readings) == [1, 2, 3]
    assert list(teacher.observations) == [1, 2, 3, 4, 5, 6, 7]
    assert [(each.name, list(each.shape), each.required) for each in teacher.inputs] == [
        ("ids", [-1, -1], True)
    ]
    assert teacher.service_version == preceptor.__version__
    assert response.limits.max_frame_bytes == server.config.limits.max_frame_bytes


def test_a_teacher_without_a_head_offers_no_logits(
    start_server: Callable[..., ToyServer], headless_teacher: Teacher
) -> None:
    with RawStudent(start_server(headless_teacher).address) as student:
        observations = student.describe().teacher.observations
    assert pb.OBSERVATION_KIND_LOGITS not in observations
    assert len(observations) == 6


def test_a_default_split_layer_beyond_the_teacher_is_refused(
    tiny_teacher: Teacher, service_config: ServiceConfig
) -> None:
    engine = build_engine(tiny_teacher, service_config)
    with pytest.raises(ValueError, match="split_layer: got 4, expected 0 to 3"):
        TeacherServicer(engine, service_config.model_copy(update={"split_layer": 4}))
    TeacherServicer(engine, service_config.model_copy(update={"split_layer": 3}))


def test_a_whole_conversation(server: ToyServer) -> None:
    with RawStudent(server.address) as student:
        assert student.ask(opening()).opened.teacher.name == "toy-0"
        reply = student.ask(set_codec(), exchange(1)).reply
        assert list(reply.reply.shape) == [2, 2, 3]
        gradients = student.ask(backward(1)).gradients
        assert list(gradients.message.shape) == [2, 2, 3]
        assert gradients.complete
        assert student.ask(observe(2)).observation.values[0].name == "lower_message"
        student.send(close())
        assert student.rest() == []
    server.wait_until(lambda: _is_empty(server))


def test_turns_in_flight_are_answered_before_the_stream_ends(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    for last in (close, None):
        with RawStudent(server.address) as student:
            assert student.ask(opening()).HasField("opened")
            server.queue.gate.clear()
            student.send(set_codec(), *(exchange(turn, message(seed=turn)) for turn in range(1, 9)))
            if last is None:
                student.done_writing()
            else:
                student.send(last())
            server.queue.await_arrivals(8)
            server.queue.gate.set()
            assert sorted(answer.reply.turn for answer in student.rest()) == list(range(1, 9))
    server.wait_until(lambda: _is_empty(server))


@pytest.mark.parametrize("deterministic", [False, True])
def test_overlapping_turns_are_all_answered_with_their_own(server: ToyServer, deterministic: bool) -> None:  # noqa: FBT001
    turns = range(1, 13)
    with RawStudent(server.address) as student:
        student.ask(opening(deterministic=deterministic))
        student.send(set_codec(), *(exchange(turn, message(seed=turn)) for turn in turns))
        together = {(answer := student.receive().reply).turn: answer.reply for _ in turns}
        student.send(*(backward(turn) for turn in turns))
        assert {student.receive().gradients.turn for _ in turns} == set(turns)
    with RawStudent(server.address) as student:
        student.ask(opening(deterministic=deterministic))
        student.send(set_codec())
        alone = {turn: student.ask(exchange(turn, message(seed=turn))).reply.reply for turn in turns}
    for turn in turns:
        got, expected = (wire.decode(replies[turn], field="reply") for replies in (together, alone))
        tolerance = 0.0 if deterministic else 1e-5
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_an_oversized_frame_ends_its_own_stream_only(server: ToyServer) -> None:
    huge = observe(9, inputs={"ids": torch.zeros(server.config.limits.max_frame_bytes // 8, 2).long()})
    with RawStudent(server.address) as other, RawStudent(server.address) as student:
        assert other.ask(opening()).HasField("opened")
        other.send(set_codec())
        expected = other.ask(exchange(1)).reply.reply
        student.ask(opening())
        with pytest.raises(grpc.RpcError) as caught:
            student.ask(huge)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert other.ask(exchange(2)).reply.reply == expected
        assert other.ask(backward(1)).gradients.receipt.graph_source == pb.GRAPH_SOURCE_RETAINED


def test_bytes_that_are_no_frame_end_their_own_stream_only(server: ToyServer) -> None:
    with (
        RawStudent(server.address) as other,
        grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        other.ask(opening())
        call: Any = channel.stream_stream("/preceptor.v1.TeacherService/Converse")
        (answer,) = call(iter([b"\xff\xff\xff"]), timeout=30)
        failed = pb.ConverseResponse.FromString(answer).failed
        assert failed.reason == pb.REASON_PROTOCOL_VIOLATION
        assert "expected a ConverseRequest" in failed.message
        assert other.ask(set_codec(), exchange(1)).HasField("reply")


def test_a_student_that_vanishes_leaves_nothing(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    with RawStudent(server.address) as student:
        student.ask(opening())
        student.ask(set_codec(), exchange(1))
        assert len(server.engine.graphs) == 1
        server.queue.gate.clear()
        student.send(exchange(2), exchange(3), observe(4))
        server.queue.await_arrivals(4)
    server.wait_until(lambda: not server.servicer._visits)
    server.queue.gate.set()
    server.wait_until(lambda: _is_empty(server))
    assert server.engine.graphs.num_bytes == 0
    with RawStudent(server.address) as student:
        assert student.ask(opening()).HasField("opened")


def test_conversations_beyond_the_limit_are_overloaded(start_server: Callable[..., ToyServer]) -> None:
    server = start_server(max_conversations=1)
    with RawStudent(server.address) as first:
        first.ask(opening())
        with RawStudent(server.address) as second:
            failed = second.ask(opening()).failed
            assert (failed.reason, failed.retry_after_ms) == (pb.REASON_OVERLOADED, 1000)
            assert failed.message == "conversations: got one more, expected at most 1"
            assert second.rest() == []
        first.send(close())
        assert first.rest() == []
    with RawStudent(server.address) as third:
        assert third.ask(opening()).HasField("opened")


def test_a_refused_student_that_says_nothing_is_told_all_the_same(
    start_server: Callable[..., ToyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_FIRST_FRAME_S", 0.01)
    with RawStudent(start_server(max_conversations=0).address) as student:
        assert [answer.failed.reason for answer in student.rest()] == [pb.REASON_OVERLOADED]


def test_whoever_opens_more_than_there_is_room_for_gets_no_place_for_the_asking(
    start_server: Callable[..., ToyServer],
) -> None:
    server = start_server(max_conversations=0)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(RawStudent(server.address)) for _ in range(20)]
        told = [student.rest()[0].failed.reason for student in silent[8:]]  # at once, though they say nothing
        assert told == [pb.REASON_OVERLOADED] * 12
        assert [student.rest()[0].failed.reason for student in silent[:8]] == [pb.REASON_OVERLOADED] * 8


def test_a_large_codec_travels_in_parts_both_ways(start_server: Callable[..., ToyServer]) -> None:
    server = start_server(max_frame_bytes=1 << 16)
    spec = CodecSpec(kind="two_layer", message_dim=3, hidden_dim=1500)  # three matrices of 18 to 48 kB
    state = codec_state(spec)
    names = list(state)
    with RawStudent(server.address) as student:
        student.ask(opening(spec))
        student.send(*(set_codec(1, {name: state[name]}, complete=name == names[-1]) for name in names))
        student.ask(exchange(1))
        parts = [student.ask(backward(1)).gradients]
        while not parts[-1].complete:
            parts.append(student.receive().gradients)
    assert len(parts) > 2
    gradients = wire.decode_named((each for part in parts for each in part.codec), field="codec")
    assert {name: gradient.shape for name, gradient in gradients.items()} == {
        name: tensor.shape for name, tensor in state.items()
    }


def test_an_answer_over_the_frame_limit_fails_alone(start_server: Callable[..., ToyServer]) -> None:
    server = start_server(max_frame_bytes=4096)
    with RawStudent(server.address) as student:
        student.ask(opening())
        frame = observe(1, (ObservationKind.UPPER_STATE,), inputs={"ids": ids(32, 8)})
        failed = student.ask(set_codec(), frame).failed
        assert (failed.turn, failed.reason) == (1, pb.REASON_LIMIT_EXCEEDED)
        assert student.ask(exchange(2)).HasField("reply")


def test_a_student_that_does_not_read_is_not_read(server: ToyServer) -> None:
    taken = 0

    async def endless() -> AsyncIterator[pb.ConverseRequest]:
        nonlocal taken
        while True:
            taken += 1
            yield exchange(taken)  # before open: each is answered by Failed at once

    async def converse() -> None:
        answers: Any = server.servicer.Converse(endless())
        await anext(answers)
        for _ in range(1000):
            await asyncio.sleep(0)
        await answers.aclose()

    server.call(converse())
    assert taken <= server.config.limits.max_turns_in_flight + 3
