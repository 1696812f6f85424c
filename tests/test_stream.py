"""Streams that break, hang or are closed at a bad moment, and conversations over them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import torch

from preceptor import wire
from preceptor.terms import OBSERVATION_KIND_NUMBERS, READING_NUMBERS, ObservationKind, Reading
from preceptor.v1 import teacher_pb2 as pb
from student_client import ClientOptions, TeacherUnavailableError, background
from student_client.conversation import Conversation
from student_client.inbox import Inbox
from student_client.replicas import ReplicaFinder
from student_client.stream import Stream, StreamLostError
from student_client.turns import CodecSnapshot, Turn
from tests.conftest import QUICK
from tests.toy_frames import MESSAGE_DIM, MESSAGE_LEN, SPEC, codec_state, ids, message

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.toy_server import ToyServer

GRADIENT = {"reply": torch.ones(2, MESSAGE_LEN, MESSAGE_DIM)}


def _open() -> pb.Open:
    return pb.Open(codec=SPEC.to_proto(), reading=READING_NUMBERS[Reading.REPLACE])


def _turn(number: int = 1) -> Turn:
    exchange = pb.Exchange(
        turn=number, message=wire.encode(message(seed=number)), codec_version=1, wants_gradient=True
    )
    return Turn(number, pb.ConverseRequest(exchange=exchange), CodecSnapshot(1, codec_state()))


def _with_stream(
    server: ToyServer, use: Callable[[Stream], Coroutine[Any, Any, None]], options: ClientOptions = QUICK
) -> None:
    """Lets a test use a started stream on the client's loop."""

    async def run() -> None:
        stream = Stream(server.address, options)
        await stream.start(_open())
        await asyncio.wait_for(use(stream), 30)
        await stream.close()

    background.run(run())


def test_two_who_close_retired_streams_together_do_not_meet(server: ToyServer) -> None:
    async def run() -> None:
        conversation = Conversation((server.address,), _open(), QUICK)
        for _ in range(3):
            conversation._retired.append(Stream(server.address, QUICK))
            await conversation._retired[-1].start(_open())
        await asyncio.gather(conversation._close_retired(), conversation._close_retired())
        assert conversation._retired == []

    background.run(run())
    server.wait_until(lambda: not server.servicer._visits)


@pytest.mark.parametrize(("kind", "name"), [(ReplicaFinder, "find"), (Stream, "start")])
def test_a_conversation_closed_while_it_looks_for_a_replica_stays_closed(
    server: ToyServer, monkeypatch: pytest.MonkeyPatch, kind: type, name: str
) -> None:
    original = getattr(kind, name)

    async def run() -> None:
        conversation = Conversation((server.address,), _open(), QUICK)

        async def closed_after(*args: Any, **fields: Any) -> Any:
            result = await original(*args, **fields)
            await conversation.close()
            return result

        monkeypatch.setattr(kind, name, closed_after)
        with pytest.raises(TeacherUnavailableError, match="the conversation was closed by the student"):
            await conversation.forward(_turn())

    background.run(run())
    server.wait_until(lambda: not server.servicer._visits)


def test_an_answer_that_cannot_be_taken_loses_the_stream(
    server: ToyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def take(*_: object) -> None:
        raise RuntimeError("broken")

    async def use(stream: Stream) -> None:
        monkeypatch.setattr(Inbox, "_take_forward", take)
        with pytest.raises(StreamLostError, match="RuntimeError: broken"):
            await stream.forward(_turn())

    _with_stream(server, use)
    assert "an answer could not be taken" in caplog.text


def test_a_failure_of_the_conversation_is_why_the_stream_is_lost(server: ToyServer) -> None:
    async def use(stream: Stream) -> None:
        await stream._write_free(pb.ConverseRequest(open=_open()))
        with pytest.raises(StreamLostError, match="InvalidMessageError: open: got a second one"):
            await stream.forward(_turn())

    _with_stream(server, use)


def test_closing_does_not_wait_for_a_write_that_hangs(
    server: ToyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student_client.stream._CLOSE_TIMEOUT_S", 0.01)

    async def use(stream: Stream) -> None:
        await stream._writing.acquire()
        await stream.close()
        assert not stream.usable

    _with_stream(server, use)


@pytest.mark.parametrize("what", ["codec 2", "turn 2, read ahead,"])
def test_what_is_sent_early_does_not_hang_forever(server: ToyServer, what: str) -> None:
    kinds = [OBSERVATION_KIND_NUMBERS[ObservationKind.LOGITS]]
    inputs = pb.Inputs(tensors=wire.encode_named({"ids": ids()}))
    ahead = pb.ConverseRequest(observe=pb.Observe(turn=2, inputs=inputs, kinds=kinds, ahead=True))
    options = QUICK.model_copy(update={"answer_timeout_s": 0.5})

    async def use(stream: Stream) -> None:
        await stream.forward(_turn())
        await stream._writing.acquire()  # as a write that hangs
        early: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "codec 2": lambda: stream.push_codec(CodecSnapshot(2, codec_state(seed=2))),
            "turn 2, read ahead,": lambda: stream.read_ahead(Turn(2, ahead, None)),
        }
        with pytest.raises(StreamLostError, match=f"no room for {what} within 0.5 s"):
            await early[what]()
        stream._writing.release()

    _with_stream(server, use, options)


def test_no_more_turns_are_taken_as_known_than_the_replica_keeps(
    start_server: Callable[..., ToyServer],
) -> None:
    server = start_server(max_retained_turns=2)

    async def use(stream: Stream) -> None:
        for number in (1, 2, 3):
            await stream.forward(_turn(number))
        assert list(stream._known_turns) == [2, 3]
        assert (await stream.backward(_turn(1), GRADIENT)).message is not None  # sent again before it

    _with_stream(server, use)
