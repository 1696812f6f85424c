"""What is in flight together: turns of a batch, observations, codecs, the next batch's inputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, cast

import pytest
import torch

from preceptor import wire
from preceptor.compression import Compression, WireType, encode
from preceptor.terms import Reading
from student_client import TeacherTalk
from student_client.turns import CodecSnapshot
from tests.local_talk import assert_close, gradients_of, loss_of
from tests.toy import STUDENT_DIM
from tests.toy_frames import MESSAGE_DIM, MESSAGE_LEN, ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from student_client.frames import TeacherInputs
    from student_client.pending import SentTurns
    from tests.toy_server import ToyServer

BATCH = 6
INPUTS = {"ids": ids(BATCH, 5)}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The versions of codecs that were sent, in this order."""
    versions: list[int] = []
    frames = CodecSnapshot.frames

    def counted(self: CodecSnapshot, max_bytes: int) -> object:
        versions.append(self.version)
        return frames(self, max_bytes)

    monkeypatch.setattr(CodecSnapshot, "frames", counted)
    return versions


def _states() -> torch.Tensor:
    return torch.randn(BATCH, 4, STUDENT_DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()


def _change(talk: TeacherTalk) -> None:
    """As an optimizer's step would."""
    with torch.no_grad():
        for parameter in talk.teacher_codec.parameters():
            parameter.add_(0.1)


def test_a_talk_and_an_observation_are_sent_before_either_is_waited_for(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address, reading="beside", deterministic=True)
    expected = talk(_states(), inputs=INPUTS, num_rounds=2)
    seen = talk.observe(INPUTS, ["lower_message"])
    server.queue.await_arrivals(3)
    server.queue.gate.clear()
    observation = talk.start_observe(INPUTS, ["lower_message"])
    pending = talk.start(_states(), inputs=INPUTS, num_rounds=2)
    server.queue.await_arrivals(2)
    server.queue.gate.set()
    assert torch.equal(pending.result().decoded, expected.decoded)
    assert pending.result() is pending.result()
    assert torch.equal(observation.result()["lower_message"], seen["lower_message"])


def test_only_time_that_is_blocked_counts_as_waiting(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], pool: ThreadPoolExecutor
) -> None:
    server = start_server()
    talk = connect(server.address)
    pending = talk.start(_states())
    sent = [turn._future for turn in cast("SentTurns", pending._sent).turns]
    wait([future for future in sent if future is not None])
    pending.result()
    assert talk.conversation.waiting_s == 0.0
    server.queue.await_arrivals()
    server.queue.gate.clear()
    late = pool.submit(talk, _states())
    server.queue.await_arrivals()
    server.queue.gate.set()
    late.result(60)
    assert talk.conversation.waiting_s > 0.0


@pytest.mark.parametrize("reading", list(Reading))
def test_micro_batches_give_the_gradients_of_the_whole_batch(
    server: ToyServer, connect: Callable[..., TeacherTalk], reading: Reading
) -> None:
    found = []
    for micro_batch_size, num_turns in ((None, 1), (2, 3), (1, BATCH)):
        talk = connect(server.address, reading=reading, micro_batch_size=micro_batch_size)
        states, target = _states(), torch.ones(BATCH, 4, STUDENT_DIM)
        heard = talk(states, inputs=INPUTS)
        seen = talk.observe(INPUTS, ["upper_message", "state_consistency", "logits"])
        assert len(heard.receipts) == num_turns
        loss = loss_of(heard, target) + seen["upper_message"].sum() + seen["state_consistency"].sum()
        found.append({**gradients_of(loss, talk, states=states), "logits": seen["logits"]})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in found[0].items():
            assert_close(other[name], gradient, 2e-6)


def test_a_batchs_turns_are_in_flight_together_both_ways(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], pool: ThreadPoolExecutor
) -> None:
    server = start_server()
    talk = connect(server.address, micro_batch_size=2)
    server.queue.gate.clear()
    talking = pool.submit(talk, _states())
    server.queue.await_arrivals(3)
    server.queue.gate.set()
    loss = talking.result(60).decoded.square().sum()
    server.queue.gate.clear()
    learning = pool.submit(gradients_of, loss, talk)
    server.queue.await_arrivals(3)
    server.queue.gate.set()
    assert len(learning.result(60)) == len(list(talk.parameters()))


def test_a_micro_batch_has_rows(connect: Callable[..., TeacherTalk]) -> None:
    with pytest.raises(ValueError, match="micro_batch_size: got 0, expected at least 1, or None"):
        connect("127.0.0.1:1", micro_batch_size=0)


@pytest.mark.parametrize(
    ("limits", "max_frame_bytes", "num_turns"),
    [
        ({}, None, BATCH),
        ({"max_retained_turns": 4}, None, 2),
        ({"max_retained_turns": 4, "max_batch_size": 2}, None, 3),
        ({"max_retained_turns": 4}, 1, BATCH),
    ],
)
def test_a_batch_is_no_more_turns_than_the_teacher_keeps_if_they_fit(
    start_server: Callable[..., ToyServer],
    limits: dict[str, int],
    max_frame_bytes: int | None,
    num_turns: int,
) -> None:
    address = f"preceptor://{start_server(**limits).address}"
    talk = TeacherTalk.connect(
        address, student_dim=STUDENT_DIM, message_dim=MESSAGE_DIM, reading="replace", micro_batch_size=1
    )
    talk.max_frame_bytes = max_frame_bytes or talk.max_frame_bytes
    assert len(talk(_states()).receipts) == num_turns
    assert len(talk.start_observe(INPUTS, ["lower_message"])._sent.turns) == num_turns
    with torch.no_grad():
        assert len(talk(_states()).receipts) == BATCH
    talk.close()


def test_inputs_that_were_read_ahead_come_from_the_cache(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address, reading="beside")
    talk(_states()[:1], inputs={"ids": ids(1, 5) + 1})
    server.queue.await_arrivals()
    talk.read_ahead(INPUTS, ["logits", "lower_message"])
    server.queue.await_arrivals()
    server.wait_until(lambda: server.queue.num_queued_tokens == 0)
    assert talk(_states(), inputs=INPUTS).receipts[0].num_cached_rows == BATCH
    observation = talk.start_observe(INPUTS, ["logits", "lower_message"])
    assert observation._sent.turns[0].result().receipt.num_cached_rows == BATCH


def test_few_batches_are_read_ahead_at_once_and_none_that_nobody_reads(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address)
    talk.read_ahead(INPUTS, ["logits"])  # no stream is open
    talk(_states())
    talk.read_ahead(INPUTS)  # this reading needs no inputs
    server.queue.await_arrivals()
    server.queue.gate.clear()
    for _ in range(5):
        talk.read_ahead(INPUTS, ["logits"])
    pending = talk.start(_states())
    server.queue.await_arrivals(3)
    server.queue.gate.set()
    pending.result()
    assert server.queue.num_admitted == 4


def test_what_is_in_the_cache_already_is_seldom_read_ahead(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address, reading="beside")
    talk(_states(), inputs=INPUTS)
    for _ in range(40):
        talk.read_ahead(INPUTS, ["lower_message"])
        talk(_states(), inputs=INPUTS)  # answered after what was read ahead
    num_read_ahead = server.queue.num_admitted - 41
    assert num_read_ahead == 3  # the first, and one after each 16 that were left out


def test_reading_ahead_never_fails(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server(max_turns_in_flight=1)
    talk = connect(server.address)
    expected = talk(_states()).decoded
    talk.read_ahead({"ids": ids() + 1000}, ["logits"])
    talk.read_ahead({"other": ids()}, ["logits"])
    nothing: list[TeacherInputs] = [{}, [], {"ids": ids()[:0]}]
    for inputs in nothing:
        talk.read_ahead(inputs, ["logits"])
    assert torch.equal(talk(_states()).decoded, expected)
    server.queue.await_arrivals(2)
    server.queue.gate.clear()
    pending = talk.start(_states())
    server.queue.await_arrivals()
    talk.read_ahead(INPUTS, ["logits"])  # the only place is taken
    server.queue.gate.set()
    assert torch.equal(pending.result().decoded, expected)
    server.kill()
    talk.read_ahead(INPUTS, ["logits"])
    server.start()
    assert torch.equal(talk(_states()).decoded, expected)


def test_a_pushed_codec_is_there_before_the_turn_that_needs_it_and_sent_once(
    server: ToyServer, connect: Callable[..., TeacherTalk], uploads: list[int]
) -> None:
    talk = connect(server.address)
    talk.push_codec()  # no conversation yet
    talk.observe(INPUTS, ["logits"])
    talk.push_codec()  # nothing has needed a codec yet
    talk(_states())
    talk.push_codec()  # unchanged
    assert uploads == [1]
    _change(talk)
    talk.push_codec()
    assert talk(_states()).receipts[0].codec_version == 2
    assert talk.observe(INPUTS, ["lower_message"]).keys() == {"lower_message"}
    assert uploads == [1, 2]


def test_a_codec_that_was_pushed_to_a_lost_replica_is_sent_with_the_turn(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], uploads: list[int]
) -> None:
    server = start_server()
    talk = connect(server.address)
    talk(_states())
    server.kill()
    _change(talk)
    talk.push_codec()
    server.start()
    assert talk(_states()).receipts[0].codec_version == 2
    assert uploads[-1] == 2


def test_rounding_of_messages_is_passed_straight_through(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    narrow = Compression(message=WireType.INT8)
    rounding, exact = (
        connect(server.address, deterministic=True, compression=c) for c in (narrow, "float32")
    )
    message = torch.randn(BATCH, MESSAGE_LEN, MESSAGE_DIM, requires_grad=True)
    arrived = wire.decode(encode(message, WireType.INT8), field="message").requires_grad_()
    assert not torch.equal(arrived, message)
    mask = torch.ones(BATCH, MESSAGE_LEN, dtype=torch.bool)
    results = []
    for talk, said in ((rounding, message), (exact, arrived)):
        values, _ = talk.send_message(said, mask, None).values(said)
        results.append((values["reply"], *torch.autograd.grad(values["reply"].square().sum(), said)))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("wire_type", [WireType.FLOAT16, WireType.INT8])
def test_gradients_too_large_for_their_type_become_nan_without_a_call(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], wire_type: WireType
) -> None:
    server = start_server()
    talk = connect(server.address, compression=Compression(gradient=wire_type))
    heard = talk(_states())
    admitted = server.queue.num_admitted
    torch.autograd.backward(heard.replies[0].sum() * 1e6)  # float16 ends at 65504
    overflows = wire_type is WireType.FLOAT16
    assert server.queue.num_admitted == admitted + (not overflows)
    gradients = [parameter.grad for parameter in talk.teacher_codec.parameters()]
    assert all(gradient is not None and bool(gradient.isnan().all()) == overflows for gradient in gradients)
