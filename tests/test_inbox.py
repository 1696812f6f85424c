"""Who gets which answer on a stream, also when a teacher answers nonsense; and how batches become frames."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import torch

from preceptor import wire
from preceptor.compression import WireType
from preceptor.terms import ObservationKind
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1 import tensor_pb2 as tensors
from student_client.errors import InvalidMessageError, TeacherError
from student_client.frames import exchange_frames, num_rows, observe_frames
from student_client.inbox import FailedTurnError, Inbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from student_client.turns import ForwardAnswer, GradientsAnswer

ResultT = TypeVar("ResultT")
NO_TENSOR = tensors.Tensor(data_type=tensors.DATA_TYPE_FLOAT32, shape=[3], data=b"\0")


def _with_inbox(use: Callable[[Inbox], asyncio.Future[ResultT]]) -> ResultT:
    """Lets a test use an inbox on a loop and returns what its future gets."""

    async def run() -> ResultT:
        return await asyncio.wait_for(use(Inbox()), 30)

    return asyncio.run(run())


def _reply(turn: int, value: tensors.Tensor) -> pb.ConverseResponse:
    return pb.ConverseResponse(reply=pb.Reply(turn=turn, reply=value, receipt=pb.Receipt(tokens=7)))


def _gradients(turn: int, *, complete: bool, **named: torch.Tensor) -> pb.ConverseResponse:
    part = pb.Gradients(turn=turn, codec=wire.encode_named(named), complete=complete)
    return pb.ConverseResponse(gradients=part)


def test_answers_reach_whoever_waits_for_their_turn() -> None:
    def use(inbox: Inbox) -> asyncio.Future[ForwardAnswer]:
        first, second = inbox.expect_forward(1), inbox.expect_forward(2)
        assert inbox.num_awaited == 2
        inbox.take(_reply(3, wire.encode(torch.zeros(1))))  # nobody waits for this one
        inbox.take(_reply(2, wire.encode(torch.ones(1))))
        inbox.take(_gradients(2, complete=True))
        assert second.done()
        assert not first.done()
        return second

    answer = _with_inbox(use)
    assert answer.values["reply"].tolist() == [1.0]
    assert answer.receipt.tokens == 7


def test_parts_of_gradients_are_put_together() -> None:
    def use(inbox: Inbox) -> asyncio.Future[GradientsAnswer]:
        future = inbox.expect_gradients(1)
        inbox.take(_gradients(1, complete=False, a=torch.ones(1)))
        inbox.take(_gradients(1, complete=True, b=torch.zeros(1)))
        return future

    answer = _with_inbox(use)
    assert {name: tensor.tolist() for name, tensor in answer.codec.items()} == {"a": [1.0], "b": [0.0]}
    assert answer.message is None


def test_parts_before_a_failure_do_not_count() -> None:
    failed = pb.ConverseResponse(failed=pb.Failed(turn=1, message="broken"))

    async def run() -> set[str]:
        inbox = Inbox()
        first = inbox.expect_gradients(1)
        inbox.take(_gradients(1, complete=False, a=torch.ones(1)))
        inbox.take(failed)
        with pytest.raises(FailedTurnError, match="broken"):
            await first
        await asyncio.sleep(0)  # lets the loop forget the first one
        second = inbox.expect_gradients(1)
        inbox.take(_gradients(1, complete=True, b=torch.ones(1)))
        return set((await second).codec)

    assert asyncio.run(run()) == {"b"}


@pytest.mark.parametrize(
    "answer",
    [
        _reply(1, NO_TENSOR),
        pb.ConverseResponse(
            gradients=pb.Gradients(turn=1, message=NO_TENSOR, complete=True),
        ),
    ],
    ids=["reply", "gradients"],
)
def test_tensors_that_are_none_are_the_teachers_fault(answer: pb.ConverseResponse) -> None:
    def use(inbox: Inbox) -> asyncio.Future[Any]:
        waiting: asyncio.Future[Any] = inbox.expect_forward(1)
        if answer.HasField("gradients"):
            waiting = inbox.expect_gradients(1)
        inbox.take(answer)
        return waiting

    with pytest.raises(TeacherError, match=r"turn 1: the teacher's answer: .*got 1 bytes, expected 12"):
        _with_inbox(use)


def test_a_frame_without_a_known_content_is_the_teachers_fault() -> None:
    def use(inbox: Inbox) -> asyncio.Future[pb.Opened]:
        inbox.take(pb.ConverseResponse())
        return inbox.opened

    with pytest.raises(TeacherError, match="frame: got one that this client does not know"):
        _with_inbox(use)


def test_failures_go_to_the_opening_the_codec_or_the_turn() -> None:
    def use(inbox: Inbox) -> asyncio.Future[pb.Opened]:
        inbox.take(pb.ConverseResponse(failed=pb.Failed(codec_version=4, message="codec")))
        assert inbox.codec_failures[4].message == "codec"
        inbox.take(pb.ConverseResponse(failed=pb.Failed(turn=9, message="nobody's")))
        assert not inbox.opened.done()
        inbox.take(pb.ConverseResponse(failed=pb.Failed(message="no")))
        inbox.take(pb.ConverseResponse(opened=pb.Opened()))  # too late
        return inbox.opened

    with pytest.raises(FailedTurnError, match="no"):
        _with_inbox(use)


def test_a_failure_of_nothing_in_particular_ends_an_open_conversation() -> None:
    failed = pb.Failed(message="credit: got too much", reason=pb.REASON_PROTOCOL_VIOLATION)

    def use(inbox: Inbox) -> asyncio.Future[pb.Opened]:
        inbox.take(pb.ConverseResponse(opened=pb.Opened()))
        with pytest.raises(InvalidMessageError, match="credit: got too much"):
            inbox.take(pb.ConverseResponse(failed=failed))
        return inbox.opened

    assert _with_inbox(use) == pb.Opened()


def test_a_lost_stream_is_told_to_everybody() -> None:
    async def run() -> list[BaseException | None]:
        inbox = Inbox()
        futures: list[asyncio.Future[Any]] = [
            inbox.expect_forward(1),
            inbox.expect_gradients(2),
            inbox.opened,
        ]
        inbox.fail_all(RuntimeError("lost"))
        inbox.fail_all(RuntimeError("again"))
        await asyncio.wait(futures)
        assert inbox.num_awaited == 0
        return [future.exception() for future in futures]

    assert [str(error) for error in asyncio.run(run())] == ["lost"] * 3


def test_batches_are_split_by_rows() -> None:
    message, mask = torch.randn(5, 2, 3), torch.ones(5, 2, dtype=torch.bool)
    inputs = {"ids": torch.arange(20).reshape(5, 4)}
    row_bytes = 2 * 3 * 4 + 2 + 4 * 8
    frames = exchange_frames(
        message,
        mask,
        inputs,
        wire_type=WireType.FLOAT32,
        wants_gradient=True,
        max_bytes=4096 + 2 * row_bytes,
    )
    assert [frame.message.shape[0] for frame in frames] == [2, 2, 1]
    parts = [wire.decode(frame.message, field="x") for frame in frames]
    assert torch.equal(torch.cat(parts), message)
    parts = [wire.decode_named(frame.inputs.tensors, field="x")["ids"] for frame in frames]
    assert torch.equal(torch.cat(parts), inputs["ids"])
    assert not any(frame.HasField("mask") for frame in frames)
    assert all(frame.wants_gradient for frame in frames)


def test_a_row_that_fits_no_frame_goes_alone() -> None:
    message, mask = torch.randn(2, 2, 3), torch.tensor([[True, False], [True, True]])
    frames = exchange_frames(
        message, mask, None, wire_type=WireType.FLOAT16, wants_gradient=False, max_bytes=1
    )
    assert len(frames) == 2
    assert [wire.decode(frame.mask, field="x").tolist() for frame in frames] == mask[:, None].tolist()
    assert {frame.message.data_type for frame in frames} == {tensors.DATA_TYPE_FLOAT16}


def test_a_batch_is_split_into_micro_batches() -> None:
    message, mask = torch.randn(5, 2, 3), torch.ones(5, 2, dtype=torch.bool)
    frames = exchange_frames(
        message,
        mask,
        None,
        wire_type=WireType.INT8,
        wants_gradient=True,
        max_bytes=1 << 20,
        max_rows=2,
    )
    assert [frame.message.shape[0] for frame in frames] == [2, 2, 1]
    assert {frame.message.data_type for frame in frames} == {tensors.DATA_TYPE_INT8_BLOCKS}
    ahead = observe_frames(
        ["a", "b", "c"],
        kinds=[ObservationKind.LOGITS],
        message_mask=None,
        wants_gradient=False,
        max_bytes=1 << 20,
        max_rows=2,
        ahead=True,
    )
    assert [(len(frame.inputs.texts), frame.ahead) for frame in ahead] == [(2, True), (1, True)]


def test_texts_are_split_by_rows_too() -> None:
    texts = ["a" * 2000, "b", "c"]
    kinds = [ObservationKind.LOGITS, ObservationKind.LOWER_MESSAGE]
    mask = torch.ones(3, 2, dtype=torch.bool)
    frames = list(
        observe_frames(texts, kinds=kinds, message_mask=mask, wants_gradient=True, max_bytes=4096 + 4100)
    )
    assert [list(frame.inputs.texts) for frame in frames] == [texts[:2], texts[2:]]
    assert [list(frame.mask.shape) for frame in frames] == [[2, 2], [1, 2]]
    assert set(frames[0].kinds) == {pb.OBSERVATION_KIND_LOGITS, pb.OBSERVATION_KIND_LOWER_MESSAGE}


def test_batches_without_rows_or_of_different_rows_are_refused() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    fields = {"wire_type": WireType.FLOAT32, "wants_gradient": True, "max_bytes": 1 << 20}
    with pytest.raises(ValueError, match="inputs: got 3 rows, expected 2 as in hidden_states"):
        exchange_frames(torch.ones(2, 2, 3), mask, ["a", "b", "c"], **fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hidden_states: got no rows, expected at least one"):
        exchange_frames(torch.ones(0, 2, 3), mask[:0], None, **fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs: got none, expected texts or tensors by name"):
        num_rows([])
    with pytest.raises(ValueError, match="inputs: got none, expected texts or tensors by name"):
        num_rows({})
    with pytest.raises(ValueError, match="inputs: got no rows, expected at least one"):
        num_rows({"ids": torch.ones(0, 3)})
    with pytest.raises(TypeError, match="inputs: got a str, expected a sequence of texts or tensors by na"):
        num_rows("abc")
