"""Turns as a student remembers them, sent by hand through a conversation's handle."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest
import torch

from preceptor import wire
from preceptor.terms import READING_NUMBERS, Reading
from preceptor.v1 import teacher_pb2 as pb
from student_client import ClientOptions, DeadlineExceededError, TeacherError, background
from student_client.client import TeacherClient
from student_client.turns import CodecSnapshot, CodecVersions
from tests.conftest import QUICK
from tests.toy_frames import MESSAGE_DIM, MESSAGE_LEN, SPEC, codec_state, message

if TYPE_CHECKING:
    from collections.abc import Callable

    from student_client.client import ConversationHandle
    from tests.toy_server import ToyServer


def _converse(server: ToyServer, options: ClientOptions = QUICK) -> ConversationHandle:
    reading = READING_NUMBERS[Reading.REPLACE]
    return TeacherClient(server.address, options).converse(pb.Open(codec=SPEC.to_proto(), reading=reading))


def _exchange(seed: int = 0) -> pb.Exchange:
    return pb.Exchange(message=wire.encode(message(seed=seed)), wants_gradient=True)


GRADIENT = {"reply": torch.ones(2, MESSAGE_LEN, MESSAGE_DIM)}


def test_turns_and_codecs_that_the_replica_dropped_are_sent_again(
    start_server: Callable[..., ToyServer],
) -> None:
    handle = _converse(start_server(max_retained_turns=1))
    codecs = [CodecSnapshot(version, codec_state(seed=version)) for version in range(1, 5)]
    first = handle.send(_exchange(), codecs[0])
    expected = first.result().values["reply"]
    undisturbed = first.backward(GRADIENT)
    for codec in codecs[1:]:
        handle.send(_exchange(seed=codec.version), codec).result()
    again = first.backward(GRADIENT)
    assert again.message is not None
    assert undisturbed.message is not None
    assert torch.equal(again.message, undisturbed.message)
    assert all(torch.equal(again.codec[name], grad) for name, grad in undisturbed.codec.items())
    assert (again.receipt.codec_version, handle.num_reconnects) == (1, 0)
    assert torch.equal(handle.send(_exchange(), codecs[0]).result().values["reply"], expected)
    handle.close()


def test_a_codec_that_the_replica_lost_is_sent_again(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    handle = _converse(server)
    codec = CodecSnapshot(1, codec_state())
    expected = handle.send(_exchange(), codec).result().values["reply"]
    conversation = handle._conversation
    assert conversation is not None
    assert conversation._stream is not None
    conversation._stream._held_codecs.append(2)  # as if the replica had dropped what it was sent
    again = handle.send(_exchange(), CodecSnapshot(2, codec_state())).result().values["reply"]
    assert torch.equal(again, expected)
    handle.close()


def test_one_turn_can_not_be_awaited_twice_at_once(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    handle = _converse(server)
    pending = handle.send(_exchange(), CodecSnapshot(1, codec_state()))
    pending.result()
    server.queue.await_arrivals()
    server.queue.gate.clear()
    first = pending.start_backward(GRADIENT).future
    server.queue.await_arrivals()
    with pytest.raises(TeacherError, match="turn 1: got it twice at the same time, expected one caller"):
        pending.backward(GRADIENT)
    server.queue.gate.set()
    assert first.result(60).codec.keys() == codec_state().keys()
    handle.close()


def test_a_turn_over_its_deadline_does_not_harm_the_next(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    options = ClientOptions(answer_timeout_s=0.5, deadline_s=0.7, initial_backoff_s=0.01)
    handle = _converse(server, options)
    codec = CodecSnapshot(1, codec_state())
    pending = handle.send(_exchange(), codec)
    pending.result()
    server.queue.gate.clear()
    with pytest.raises(DeadlineExceededError, match=r"turn 1: .*no answer to .*turn 1 within 0.5 s"):
        pending.backward(GRADIENT)
    server.queue.gate.set()
    assert pending.backward(GRADIENT).message is not None
    handle.close()


def test_a_wait_ends_also_where_the_conversations_thread_hangs() -> None:
    never: Future[None] = Future()
    with pytest.raises(DeadlineExceededError, match=r"turn 7: nothing came of it within 0\.01 s"):
        background.result_of(never, "turn 7", 0.01)
    assert never.cancelled()


def test_what_comes_at_the_last_moment_has_come() -> None:
    class Late(Future[int]):
        def result(self, timeout: float | None = None) -> int:
            try:
                return super().result(timeout)
            except TimeoutError:
                if not self.done():
                    self.set_result(7)
                raise

    assert background.result_of(Late(), "turn 7", 0.01) == 7
    failed: Future[None] = Future()
    failed.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        background.result_of(failed, "turn 7", 0.01)


def test_codec_versions_count_changes_of_content() -> None:
    versions = CodecVersions()
    parameters = {"weight": torch.ones(2), "bias": torch.zeros(2)}
    first = versions.current(parameters)
    assert versions.current(dict(parameters)) is first
    parameters["bias"].data[1] = 1.0
    second = versions.current(parameters)
    assert (first.version, second.version) == (1, 2)
    assert first.parameters["bias"].tolist() == [0.0, 0.0]


def test_a_codec_snapshot_travels_in_parts_of_whole_tensors() -> None:
    snapshot = CodecSnapshot(3, {name: torch.ones(100) for name in "abcd"})
    frames = [frame.set_codec for frame in snapshot.frames(1000)]
    assert [[tensor.name for tensor in frame.tensors] for frame in frames] == [["a", "b"], ["c", "d"]]
    assert [frame.complete for frame in frames] == [False, True]
    assert {frame.version for frame in frames} == {3}
    assert len(list(snapshot.frames(1))) == 4
