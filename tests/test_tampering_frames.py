"""Frames that lie: about their size, their shapes, their numbers and what their strings are for."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch

from preceptor import wire
from preceptor.codec import CodecSpec
from preceptor.terms import ObservationKind, Reading
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1 import tensor_pb2 as tensors
from tests.toy_frames import (
    MESSAGE_DIM,
    SPEC,
    Desk,
    OtherDesk,
    backward,
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
    from collections.abc import Callable, Iterator

    from services.teacher.engine import Engine
    from tests.toy_server import ToyServer

SMALL = 1 << 14
OUR_FOLDERS = (str(Path(__file__).parent.parent), str(Path(torch.__file__).parent))
FREE = CodecSpec(message_dim=MESSAGE_DIM)
FLOAT32, INT8, UINT8 = tensors.DATA_TYPE_FLOAT32, tensors.DATA_TYPE_INT8_BLOCKS, tensors.DATA_TYPE_UINT8


@pytest.fixture(autouse=True)
def _no_defects(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Holds every test of this file to it: nothing a student sends is a defect of the service."""
    with caplog.at_level(logging.DEBUG):
        yield
    assert [each.getMessage() for each in caplog.get_records("call") if each.levelno >= logging.ERROR] == []


def assert_refused(answer: pb.ConverseResponse, *reasons: pb.Reason) -> None:
    """A refusal has a known reason, is short, and tells nothing of the place where it was written."""
    assert answer.WhichOneof("frame") == "failed", answer
    failed = answer.failed
    assert failed.reason in reasons, failed
    assert 0 < len(failed.message) < 2100
    for trace in ("Traceback", "site-packages", '.py"', "line ", *OUR_FOLDERS):
        assert trace not in failed.message


def sized(num_bytes: int) -> pb.ConverseRequest:
    """Returns a good frame of so many bytes: what it is filled with is a field that nobody knows."""
    frame = exchange(1)
    room = num_bytes - frame.ByteSize()
    fills = (b"\xfa\x3f" + _varint(size) + bytes(size) for size in range(room - 9, room))
    for fill in fills:
        padded = pb.ConverseRequest.FromString(frame.SerializeToString() + fill)
        if padded.ByteSize() == num_bytes:
            return padded
    raise AssertionError(num_bytes)


def _varint(number: int) -> bytes:
    head = b""
    while number > 0x7F:
        head += bytes([number & 0x7F | 0x80])
        number >>= 7
    return head + bytes([number])


def test_a_frame_of_the_limit_is_taken_and_one_byte_more_is_refused(
    start_server: Callable[..., ToyServer],
) -> None:
    server, codec = start_server(max_frame_bytes=SMALL), set_codec()
    with RawStudent(server.address) as student, RawStudent(server.address) as other:
        for each in (student, other):
            each.ask(opening())
            each.send(codec)
        assert student.ask(sized(SMALL)).HasField("reply")
        answer = student.ask(sized(SMALL + 1))
        assert_refused(answer, pb.REASON_LIMIT_EXCEEDED)
        assert answer.failed.message == f"frame bytes: got {SMALL + 1}, expected at most {SMALL}"
        assert student.ask(backward(1)).HasField("gradients")
        with pytest.raises(grpc.RpcError) as refused:  # gRPC's own limit is a little higher
            student.ask(sized(SMALL + (64 << 10) + 64))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert other.ask(exchange(1)).HasField("reply")


@pytest.mark.parametrize("name", ["max_batch_size", "max_message_len", "max_input_len", "max_turn_tokens"])
def test_what_is_at_a_limit_is_taken_and_what_is_over_it_refused(engine: Engine, name: str) -> None:
    limit = 4

    def turn(number: int, over: int) -> pb.ConverseRequest:
        size = limit + over
        if name == "max_input_len":
            return observe(number, inputs={"ids": ids(1, size)}, mask=torch.ones(1, 2).bool())
        rows, positions = (1, size) if name == "max_message_len" else (size, 1)
        return exchange(number, torch.ones(rows, positions, MESSAGE_DIM))

    with Desk(engine, **{name: limit}) as desk:
        desk.say(opening(FREE), set_codec(state=codec_state(FREE)))
        assert not desk.ask(turn(1, 0)).HasField("failed")
        answer = desk.ask(turn(2, 1))
        assert_refused(answer, pb.REASON_LIMIT_EXCEEDED)
        assert "got 5, expected at most 4" in answer.failed.message
        assert not desk.ask(turn(3, 0)).HasField("failed")


def test_a_codec_at_the_limit_is_taken_and_one_over_it_refused(engine: Engine) -> None:
    size = sum(tensor.numel() for tensor in codec_state().values())
    for limit, kind in ((size, "opened"), (size - 1, "failed")):
        with Desk(engine, max_codec_parameters=limit) as desk:
            assert desk.ask(opening()).WhichOneof("frame") == kind


def test_characters_are_counted_before_anything_is_read(engine: Engine) -> None:
    with Desk(engine, max_text_characters=10) as desk:
        desk.say(opening(), set_codec())
        assert_refused(desk.ask(observe(1, inputs=["x" * 11])), pb.REASON_LIMIT_EXCEEDED)
        assert_refused(desk.ask(observe(2, inputs=["é" * 10])), pb.REASON_FIELD_INVALID)  # takes no texts


LIES = {
    "more than came": tensors.Tensor(data_type=FLOAT32, shape=[1 << 20, 2, 3], data=bytes(48)),
    "2^63 elements": tensors.Tensor(data_type=FLOAT32, shape=[2**61, 2, 3], data=bytes(48)),
    "2^64 elements": tensors.Tensor(data_type=FLOAT32, shape=[2**32, 2**32, 1], data=b""),
    "2^64 + 2 elements": tensors.Tensor(data_type=FLOAT32, shape=[2**63 - 1, 2, 3], data=bytes(8)),
    "nothing of much": tensors.Tensor(data_type=FLOAT32, shape=[0, 2**62, 3], data=b""),
    "nothing": tensors.Tensor(data_type=FLOAT32, shape=[0, 2, 3], data=b""),
    "negative": tensors.Tensor(data_type=FLOAT32, shape=[-2, -2, 3], data=bytes(48)),
    "least": tensors.Tensor(data_type=FLOAT32, shape=[-(2**63), 2, 3], data=b""),
    "no shape": tensors.Tensor(data_type=FLOAT32, shape=[], data=bytes(48)),
    "a million sizes": tensors.Tensor(data_type=FLOAT32, shape=[1] * 10**6, data=bytes(4)),
    "a million zeros": tensors.Tensor(data_type=FLOAT32, shape=[0] * 10**6, data=b""),
    "no type": tensors.Tensor(shape=[2, 2, 3], data=bytes(48)),
    "bytes as numbers": tensors.Tensor(data_type=UINT8, shape=[2, 2, 3], data=bytes(12)),
    "no blocks": tensors.Tensor(data_type=INT8, shape=[2, 2, 3], data=bytes(12), scales=bytes(4)),
    "no scales": tensors.Tensor(data_type=INT8, shape=[2, 2, 3], data=bytes(12), block_size=64),
    "scales of others": tensors.Tensor(
        data_type=INT8, shape=[2, 2, 3], data=bytes(12), block_size=2**32 - 1, scales=bytes(8)
    ),
    "a scale an element, but one": tensors.Tensor(
        data_type=INT8, shape=[2, 2, 3], data=bytes(12), block_size=1, scales=bytes(44)
    ),
    "half a scale": tensors.Tensor(
        data_type=INT8, shape=[2, 2, 3], data=bytes(12), block_size=64, scales=bytes(2)
    ),
    "int8 of much": tensors.Tensor(data_type=INT8, shape=[2**61, 2, 3], block_size=2**32 - 1),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_that_lies_is_refused_wherever_it_stands(engine: Engine, lie: str) -> None:
    tensor = LIES[lie]
    named = [tensors.NamedTensor(name="ids", tensor=tensor)]
    first, *others = wire.encode_named(codec_state())
    frames = [
        exchange(2, tensor),
        exchange(3, message(), mask=tensor),
        pb.ConverseRequest(
            observe=pb.Observe(
                turn=4, codec_version=1, kinds=[pb.OBSERVATION_KIND_LOGITS], inputs=pb.Inputs(tensors=named)
            )
        ),
        set_codec(2, [tensors.NamedTensor(name=first.name, tensor=tensor), *others]),
        pb.ConverseRequest(
            backward=pb.Backward(turn=1, gradients=[tensors.NamedTensor(name="reply", tensor=tensor)])
        ),
    ]
    refusals = (
        pb.REASON_TENSOR_INVALID,
        pb.REASON_SHAPE_MISMATCH,
        pb.REASON_DATA_TYPE_MISMATCH,
        pb.REASON_LIMIT_EXCEEDED,
        pb.REASON_FIELD_INVALID,
    )
    with Desk(engine) as desk:
        desk.say(opening(), set_codec())
        expected = desk.ask(exchange(1)).reply.reply
        for frame in frames:
            assert_refused(desk.ask(frame), *refusals)
        assert desk.ask(exchange(1)).reply.reply == expected
        assert desk.ask(backward(1)).HasField("gradients")


EXTREMES = {
    "NaN": torch.full((2, 2, MESSAGE_DIM), torch.nan),
    "infinity": torch.full((2, 2, MESSAGE_DIM), -torch.inf),
    "the largest": torch.full((2, 2, MESSAGE_DIM), torch.finfo(torch.float32).max),
    "denormal": torch.full((2, 2, MESSAGE_DIM), 1e-45),
    "minus zero": torch.full((2, 2, MESSAGE_DIM), -0.0),
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_extreme_numbers_of_one_are_nothing_to_another_in_the_same_pass(
    start_server: Callable[..., ToyServer],
    extreme: str,
    deterministic: bool,  # noqa: FBT001
) -> None:
    server = start_server()
    numbers = EXTREMES[extreme]
    is_finite = bool(torch.isfinite(numbers).all())
    with RawStudent(server.address) as victim, RawStudent(server.address) as attacker:
        for student in (victim, attacker):
            student.ask(opening(deterministic=deterministic, tenant=str(id(student))))
            assert student.ask(set_codec(), exchange(1)).HasField("reply")
        alone = victim.ask(exchange(2, message(seed=5))).reply.reply
        gradients_alone = victim.ask(backward(2)).gradients
        server.queue.await_arrivals(4)
        server.queue.gate.clear()
        attacker.send(exchange(3, numbers))
        if not is_finite:
            assert_refused(attacker.receive(), pb.REASON_NOT_FINITE)
        victim.send(exchange(3, message(seed=5)))
        server.queue.await_arrivals(1 + is_finite)
        server.queue.gate.set()
        together = victim.receive().reply
        if is_finite:
            assert attacker.receive().WhichOneof("frame") in ("reply", "failed")
        attacker.send(backward(3, {"reply": numbers}))
        gradients = victim.ask(backward(3)).gradients
        attacker.receive()
    tolerance = 0.0 if deterministic else 1e-5
    pairs = [(alone, together.reply), (gradients_alone.message, gradients.message)]
    pairs += [(a.tensor, b.tensor) for a, b in zip(gradients_alone.codec, gradients.codec, strict=True)]
    for expected, got in pairs:
        torch.testing.assert_close(
            wire.decode(got, field="got"), wire.decode(expected, field="x"), rtol=tolerance, atol=tolerance
        )


ODD = ["../../../etc/passwd", "os:system", "package:os/path", "file:///etc/passwd", "%(x)s{0}\x1b[31m\r\n\0"]
_touched: list[str] = []
_is_watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _is_watching and event in ("open", "import", "exec", "compile", "os.system", "subprocess.Popen"):
        _touched.append(f"{event} {arguments!r}")


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    """Notes what this process opens, imports and runs while open."""
    global _is_watching  # noqa: PLW0603 - a hook can't be taken out again
    if not _touched:
        sys.addaudithook(_watch)
        _touched.append("the hook is in")
    _is_watching = True
    yield _touched
    _is_watching = False


@pytest.mark.parametrize("odd", ODD)
def test_strings_of_a_student_are_names_and_nothing_else(engine: Engine, odd: str) -> None:
    one = torch.ones(1)
    frames: list[Any] = [
        opening(expected_fingerprint=odd),
        opening(tenant=odd),
        set_codec(1, {odd: one}),
        set_codec(2, codec_state()),
        observe(1, inputs={odd: one}),
        observe(2, inputs=[odd]),
        exchange(3, codec_version=2, inputs={"ids": ids()}),
        backward(3, {odd: one}),
        observe(4, (ObservationKind.LOGITS,)),
    ]
    with Desk(engine) as desk, OtherDesk(engine) as other, watching() as touched:
        answers = [answer for frame in frames for answer in desk.say(frame)]
        other.say(opening(SPEC, Reading.BESIDE, tenant=f"{odd}2"))
    assert not [each for each in touched if odd in each or repr(odd)[1:-1] in each]
    kinds = [answer.WhichOneof("frame") for answer in answers]
    assert kinds == ["failed", "opened", *["failed"] * 3, "reply", "failed", "observation"]
    for answer in answers:
        if answer.HasField("failed"):
            assert "Traceback" not in answer.failed.message
