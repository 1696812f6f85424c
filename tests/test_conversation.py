"""A conversation without gRPC: its agreement, its refusals, its turns."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch

from preceptor import wire
from preceptor.codec import CodecSpec
from preceptor.terms import ObservationKind, Reading
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1 import tensor_pb2 as tensors
from services.teacher.engine import Engine
from services.teacher.errors import Status
from services.teacher.fifo import FifoQueue
from services.teacher.graphs import GraphStore
from services.teacher.loading import build_engine
from services.teacher.teaching import Teaching
from tests.refusals import CASES, CASES_AFTER_CLOSE, FREED, LIMITS, Case
from tests.toy import HIDDEN, OUTPUTS, WatchedTeacher
from tests.toy_frames import (
    Desk,
    backward,
    codec_state,
    exchange,
    ids,
    message,
    observe,
    opening,
    set_codec,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher

EVERY_KIND = tuple(ObservationKind)


@pytest.fixture(scope="module")
def headless_engine(headless_teacher: Teacher, service_config: ServiceConfig) -> Iterator[Engine]:
    engine = build_engine(headless_teacher, service_config)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def desk(engine: Engine) -> Iterator[Desk]:
    """An open conversation that holds version 1 of a codec."""
    with Desk(engine) as desk:
        assert [answer.WhichOneof("frame") for answer in desk.say(opening(), set_codec())] == ["opened"]
        yield desk


def _refuse(desk: Desk, case: Case) -> pb.Failed:
    for frame in case.before:
        for answer in desk.say(frame):
            assert not answer.HasField("failed"), answer
    answer = desk.ask(case.bad)
    assert answer.WhichOneof("frame") == "failed"
    assert pb.Reason.Name(answer.failed.reason) == pb.Reason.Name(case.reason)
    for fragment in case.fragments:
        assert fragment in answer.failed.message
    return answer.failed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_frame_is_refused_and_the_conversation_goes_on(case: Case, headless_engine: Engine) -> None:
    with Desk(headless_engine, **LIMITS) as desk:
        failed = _refuse(desk, case)
        content = getattr(case.bad, case.bad.WhichOneof("frame") or "open")
        assert failed.turn == getattr(content, "turn", 0)
        assert failed.codec_version == getattr(content, "version", 0)
        assert failed.status_code not in (0, Status.INTERNAL)
        if not case.before:
            assert desk.ask(opening()).HasField("opened")
        state = codec_state(CodecSpec(message_dim=3)) if case.before is FREED else codec_state()
        turn = exchange(90, codec_version=50, inputs={"ids": ids()})
        assert desk.say(set_codec(50, state), turn)[0].HasField("reply")
        assert desk.ask(backward(90)).HasField("gradients")


@pytest.mark.parametrize("case", CASES_AFTER_CLOSE, ids=lambda case: case.name)
def test_nothing_is_taken_after_close(case: Case, engine: Engine) -> None:
    with Desk(engine, **LIMITS) as desk:
        _refuse(desk, case)
        assert desk.conversation.closed


def test_every_refusal_has_a_case() -> None:
    covered = {case.reason for case in CASES}
    elsewhere = {pb.REASON_UNSPECIFIED, pb.REASON_OVERLOADED, pb.REASON_INTERNAL, pb.REASON_DRAINING}
    elsewhere |= {pb.REASON_ACCESS_DENIED}  # test_tenant_access.py
    assert covered | elsewhere == set(pb.Reason.values())


def test_opened_tells_what_was_agreed(engine: Engine) -> None:
    with Desk(engine) as desk:
        opened = desk.ask(
            opening(split_layer=0, expected_fingerprint=engine.teacher.facts.fingerprint)
        ).opened
    assert (opened.split_layer, opened.conversation_id) == (0, "desk")
    assert opened.teacher.fingerprint == engine.teacher.facts.fingerprint
    assert opened.limits.max_turns_in_flight == 32
    with Desk(engine) as desk:
        assert desk.ask(opening()).opened.split_layer == 1


def test_a_refused_open_may_be_followed_by_a_better_one(engine: Engine) -> None:
    with Desk(engine) as desk:
        assert desk.ask(opening(reading=0)).failed.turn == 0
        assert desk.ask(opening()).HasField("opened")


def test_a_codec_may_come_in_parts(desk: Desk) -> None:
    state = list(codec_state(seed=1).items())
    whole = desk.say(set_codec(2, dict(state)), exchange(1, codec_version=2))[0].reply.reply
    parts = [set_codec(3, dict([pair]), complete=index == len(state) - 1) for index, pair in enumerate(state)]
    assert desk.say(*parts[:-1]) == []
    assert desk.ask(exchange(2, codec_version=3)).failed.reason == pb.REASON_CODEC_UNKNOWN
    assert desk.say(parts[-1], exchange(3, codec_version=3))[0].reply.reply == whole


def test_a_new_version_makes_a_half_sent_one_void(desk: Desk) -> None:
    state = codec_state(seed=1)
    assert desk.say(set_codec(2, state, complete=False), set_codec(3, state)) == []
    failed = desk.ask(set_codec(2, {})).failed
    assert (failed.codec_version, failed.reason) == (2, pb.REASON_FIELD_INVALID)


def test_repeating_a_codec_is_harmless_and_two_versions_are_held(desk: Desk) -> None:
    assert desk.say(set_codec(), set_codec(2), set_codec(2)) == []
    assert desk.say(set_codec(3), exchange(1, codec_version=2))[0].HasField("reply")
    assert desk.ask(exchange(2, codec_version=1)).failed.reason == pb.REASON_CODEC_UNKNOWN
    assert desk.say(set_codec(1), exchange(2, codec_version=1))[0].HasField("reply")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_messages_and_codecs_may_come_in_half_precision(desk: Desk, dtype: torch.dtype) -> None:
    half = {name: tensor.to(dtype) for name, tensor in codec_state().items()}
    answers = desk.say(set_codec(2, half), exchange(1, message().to(dtype), codec_version=2))
    full = desk.ask(exchange(2, message(), codec_version=1)).reply.reply
    got, expected = wire.decode(answers[0].reply.reply, field="x"), wire.decode(full, field="x")
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0.1)
    assert not torch.equal(got, expected)


@pytest.mark.parametrize(
    "data_type",
    [
        tensors.DATA_TYPE_FLOAT32,
        tensors.DATA_TYPE_FLOAT16,
        tensors.DATA_TYPE_BFLOAT16,
        tensors.DATA_TYPE_INT8_BLOCKS,
    ],
)
def test_answers_have_the_agreed_types(engine: Engine, data_type: Any) -> None:
    with Desk(engine) as desk:
        (opened,) = desk.say(opening(compression=pb.Compression(reply=data_type)), set_codec())
        assert opened.opened.compression.reply == data_type
        assert opened.opened.compression.gradient == tensors.DATA_TYPE_FLOAT32
        observed = desk.ask(observe(2, (ObservationKind.LOWER_STATE,))).observation.values
        assert {value.name: value.tensor.data_type for value in observed} == {
            "lower_state": data_type,
            "mask": tensors.DATA_TYPE_BOOL,
        }
        assert desk.ask(exchange(1)).reply.reply.data_type == data_type
        gradients = desk.ask(backward(1)).gradients
    assert gradients.message.data_type == tensors.DATA_TYPE_FLOAT32
    with Desk(engine) as desk:
        desk.say(opening(compression=pb.Compression(gradient=data_type)), set_codec())
        assert desk.ask(exchange(1)).reply.reply.data_type == tensors.DATA_TYPE_FLOAT32
        gradients = desk.ask(backward(1)).gradients
    types = {gradients.message.data_type, *(each.tensor.data_type for each in gradients.codec)}
    assert types == {data_type}


def test_a_repeated_turn_gets_the_same_bytes(desk: Desk) -> None:
    first, again = desk.ask(exchange(1)).reply.reply, desk.ask(exchange(1)).reply.reply
    assert again.SerializeToString() == first.SerializeToString()
    gradients = desk.ask(backward(1)).gradients
    repeated = desk.ask(backward(1)).gradients
    assert gradients.receipt.graph_source == pb.GRAPH_SOURCE_RETAINED
    assert repeated.receipt.graph_source == pb.GRAPH_SOURCE_RECOMPUTED
    assert repeated.message == gradients.message
    assert list(repeated.codec) == list(gradients.codec)


def test_an_observation_has_what_was_asked_for(desk: Desk) -> None:
    values = {each.name: each.tensor for each in desk.ask(observe(1, EVERY_KIND)).observation.values}
    assert {name: list(tensor.shape) for name, tensor in values.items()} == {
        "lower_message": [2, 2, 3],
        "upper_message": [2, 2, 3],
        "state_consistency": [2],
        "lower_state": [2, 4, HIDDEN],
        "upper_state": [2, 4, HIDDEN],
        "mask": [2, 4],
        "pooled_state": [2, HIDDEN],
        "logits": [2, OUTPUTS],
    }


def test_an_observation_without_a_codec_takes_no_gradient(desk: Desk) -> None:
    answer = desk.ask(observe(1, (ObservationKind.LOGITS,), codec_version=99))
    assert answer.observation.receipt.codec_version == 0
    failed = desk.ask(backward(1, {"logits": torch.ones(2, OUTPUTS)})).failed
    assert failed.reason == pb.REASON_FIELD_INVALID
    assert len(desk.conversation._engine.graphs) == 0


def test_gradients_of_an_observation_have_no_message(desk: Desk) -> None:
    desk.ask(observe(1, EVERY_KIND))
    gradients = desk.ask(backward(1, {"state_consistency": torch.ones(2)})).gradients
    assert not gradients.HasField("message")
    assert {each.name for each in gradients.codec} == set(codec_state())
    constant = desk.ask(backward(1, {"lower_state": torch.ones(2, 4, HIDDEN)})).gradients
    assert (constant.complete, len(constant.codec)) == (True, 0)


def test_a_receipt_says_what_a_turn_cost(engine: Engine) -> None:
    with Desk(engine) as desk:
        desk.say(opening(reading=Reading.BESIDE), set_codec(7))
        frame = exchange(1, codec_version=7, inputs={"ids": ids()})
        receipt = desk.ask(frame).reply.receipt
        observed = desk.ask(observe(2, codec_version=7)).observation.receipt
    assert (receipt.tokens, receipt.codec_version, receipt.num_conversations) == (2 * 4 + 2 * 2, 7, 1)
    assert receipt.request_bytes == frame.exchange.ByteSize()
    assert receipt.queue_ms >= 0
    assert receipt.compute_ms > 0
    assert observed.tokens == 2 * 4


def test_turns_beyond_the_limit_are_overloaded_and_may_come_again(engine: Engine) -> None:
    with Desk(engine, max_turns_in_flight=2) as desk:
        desk.say(opening(), set_codec())
        # Answers leave through the event loop, which does not run between these frames.
        failed, *replies = desk.say(*(exchange(turn) for turn in (1, 2, 3)))
        assert (failed.failed.turn, failed.failed.reason) == (3, pb.REASON_OVERLOADED)
        assert failed.failed.message == "turns in flight: got one more, expected at most 2"
        assert failed.failed.retry_after_ms == 50
        assert [reply.reply.turn for reply in replies] == [1, 2]
        assert desk.ask(exchange(3)).reply.turn == 3


@pytest.mark.parametrize("broken", ["prepare", "upper"])
def test_a_defect_is_reported_without_its_reason(
    tiny_teacher: Teacher, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    def watch(name: str) -> None:
        if name == broken:
            raise RuntimeError("a secret of the operator")

    teacher = WatchedTeacher(tiny_teacher)
    engine = Engine(Teaching(teacher, None), queue=FifoQueue(8), graphs=GraphStore(0))
    engine.start()
    with Desk(engine) as desk, caplog.at_level(logging.ERROR):
        desk.say(opening(), set_codec())
        teacher.watch = watch
        failed = desk.ask(observe(3, EVERY_KIND)).failed
        teacher.watch = lambda _: None
        assert desk.ask(observe(3, EVERY_KIND)).HasField("observation")
    engine.stop()
    assert (failed.turn, failed.reason, failed.status_code) == (3, pb.REASON_INTERNAL, Status.INTERNAL)
    assert "under conversation desk" in failed.message
    assert "secret" not in failed.message
    assert "a secret of the operator" in caplog.text


def test_an_answer_over_the_frame_limit_is_refused(engine: Engine) -> None:
    with Desk(engine, max_frame_bytes=4096) as desk:
        desk.say(opening(), set_codec())
        frame = observe(1, (ObservationKind.UPPER_STATE,), inputs={"ids": ids(32, 8)})
        failed = desk.ask(frame).failed
        assert (failed.turn, failed.reason) == (1, pb.REASON_LIMIT_EXCEEDED)
        assert "expected at most 4096; send fewer rows a turn" in failed.message
        assert desk.ask(exchange(2)).HasField("reply")


def test_gradients_that_do_not_fit_a_frame_come_in_parts(engine: Engine) -> None:
    spec = CodecSpec(kind="two_layer", message_dim=3, hidden_dim=100)
    state = codec_state(spec)
    last = next(reversed(state))
    with Desk(engine, max_frame_bytes=4096) as desk:
        desk.say(opening(spec))
        desk.say(*(set_codec(1, {name: state[name]}, complete=name == last) for name in state), exchange(1))
        parts = [answer.gradients for answer in desk.say(backward(1))]
    assert len(parts) > 2
    assert [part.complete for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [part.HasField("message") for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.HasField("receipt") for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(part.ByteSize() <= 4096 for part in parts)
    assert sorted(each.name for part in parts for each in part.codec) == sorted(codec_state(spec))
