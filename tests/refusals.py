"""Every frame that a conversation refuses, with the reason and the words of the refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from preceptor import wire
from preceptor.codec import CodecSpec
from preceptor.terms import ObservationKind, Reading
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1 import tensor_pb2 as tensors
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

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CASES", "CASES_AFTER_CLOSE", "FREED", "LIMITS", "Case"]

LIMITS = {
    "max_batch_size": 4,
    "max_message_len": 6,
    "max_message_dim": 8,
    "max_input_len": 5,
    "max_codec_parameters": 200,
}


@dataclass(frozen=True)
class Case:
    """A bad frame after some good ones, and how it must be refused."""

    name: str
    bad: pb.ConverseRequest
    reason: pb.Reason
    fragments: tuple[str, ...]
    before: tuple[pb.ConverseRequest, ...] = ()


FREE = CodecSpec(message_dim=3)  # a codec whose messages may have any length
OPENED = (opening(),)
READY = (*OPENED, set_codec())
REPLIED = (*READY, exchange(turn=5))
BESIDE = (opening(reading=Reading.BESIDE), set_codec())
FREED = (opening(FREE), set_codec(state=codec_state(FREE)))


def _state(position: torch.Tensor | None = None, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """The codec's state with the decoder's position replaced, or left out, and more tensors."""
    state = codec_state()
    del state["decoder.position"]
    return {**state, **more} if position is None else {**state, "decoder.position": position, **more}


def _message(value: float, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape or (2, 2, 3), value).to(dtype)


def _cut(tensor: torch.Tensor, data_type: int | None = None) -> tensors.Tensor:
    """The tensor with its last byte cut off, or of another type."""
    encoded = wire.encode(tensor)
    number: Any = encoded.data_type if data_type is None else data_type
    return tensors.Tensor(data_type=number, shape=encoded.shape, data=encoded.data[:-1])


def _unknown(number: int) -> Any:
    """A value of an enumeration that this version does not know."""
    return number


def _before_the_conversation() -> Iterator[Case]:
    violation, invalid = pb.REASON_PROTOCOL_VIOLATION, pb.REASON_FIELD_INVALID
    limit = pb.REASON_LIMIT_EXCEEDED
    for frame in (exchange(), observe(), backward(), set_codec()):
        kind = frame.WhichOneof("frame")
        yield Case(f"{kind}-before-open", frame, violation, ("got one before", "expected open"))
    yield Case("empty-frame", pb.ConverseRequest(), violation, ("frame: got none that is known, expected",))
    yield Case("second-open", opening(), violation, ("open: got a second one, expected one",), OPENED)
    spec = pb.CodecSpec(message_dim=3)
    yield Case("no-codec-kind", opening(spec), invalid, ("codec.kind: got 0, expected one of CODEC",))
    spec = pb.CodecSpec(kind=pb.CODEC_KIND_LINEAR)
    yield Case("no-message-dim", opening(spec), invalid, ("codec.message_dim: got 0", "greater than"))
    spec = pb.CodecSpec(kind=pb.CODEC_KIND_TWO_LAYER, message_dim=3)
    yield Case("no-hidden-dim", opening(spec), invalid, ("codec: got", "hidden_dim: got None for"))
    yield Case(
        "no-reading", opening(reading=0), invalid, ("reading: got 0, expected one of READING_REPLACE",)
    )
    yield Case("unknown-reading", opening(reading=9), invalid, ("reading: got 9, expected one of",))
    yield Case("split-layer", opening(split_layer=4), invalid, ("split_layer: got 4, expected 0 to 3",))
    frame = opening(compression=pb.Compression(reply=tensors.DATA_TYPE_INT64))
    yield Case("wire-type", frame, invalid, ("compression.reply: got 4, expected one of DATA_TYPE_FLOAT32",))
    frame = opening(compression=pb.Compression(gradient=_unknown(77)))
    yield Case("unknown-wire-type", frame, invalid, ("compression.gradient: got 77, expected one of",))
    frame = opening(tenant="t" * 129)
    yield Case("long-tenant", frame, limit, ("tenant characters: got 129, expected at most 128",))
    frame = opening(CodecSpec(message_dim=9))
    yield Case("wide-codec", frame, limit, ("codec.message_dim: got 9, expected at most 8",))
    frame = opening(CodecSpec(message_dim=3, message_len=7))
    yield Case("long-codec", frame, limit, ("codec.message_len: got 7, expected at most 6",))
    frame = opening(CodecSpec(kind="two_layer", message_dim=3, hidden_dim=2**32 - 1))
    yield Case("large-codec", frame, limit, ("codec parameters: got ", "expected at most 200"))
    frame = opening(expected_fingerprint="beef")
    yield Case("fingerprint", frame, pb.REASON_TEACHER_CHANGED, ("expected_fingerprint: got beef, this",))


def _codecs() -> Iterator[Case]:
    invalid = pb.REASON_FIELD_INVALID
    yield Case("version-0", set_codec(0), invalid, ("version: got 0, expected a positive",), OPENED)
    frame = set_codec(2, _state())
    yield Case("codec-missing", frame, invalid, ("codec tensors: got", "expected", "position"), OPENED)
    frame = set_codec(2, _state(torch.ones(2, 8), extra=torch.ones(1)))
    yield Case("codec-unknown", frame, invalid, ("codec tensors: got", "'extra'", "each once"), OPENED)
    twice = wire.encode_named([*codec_state().items(), *codec_state().items()])
    yield Case("codec-twice", set_codec(2, twice), invalid, ("codec tensors: got", "each once"), OPENED)
    frame = set_codec(2, _state(torch.ones(2, 7)))
    fragment = "codec[decoder.position]: got shape [2, 7], expected [2, 8]"
    yield Case("codec-shape", frame, pb.REASON_SHAPE_MISMATCH, (fragment,), OPENED)
    frame = set_codec(2, _state(torch.ones(2, 8, dtype=torch.int64)))
    fragment = "codec[decoder.position]: got int64, expected float32 or float16 or bfloat16"
    yield Case("codec-type", frame, pb.REASON_DATA_TYPE_MISMATCH, (fragment,), OPENED)
    frame = set_codec(2, _state(torch.full((2, 8), torch.nan)))
    fragment = "codec[decoder.position]: got NaN or infinity"
    yield Case("codec-nan", frame, pb.REASON_NOT_FINITE, (fragment,), OPENED)
    frame = set_codec(2, _state(extra=torch.ones(500)))
    fragment = "codec bytes: got 2"
    yield Case("codec-bytes", frame, pb.REASON_LIMIT_EXCEEDED, (fragment, "expected at most 1600"), OPENED)
    frame = set_codec(2, [tensors.NamedTensor()] * 65)
    fragment = "codec tensors: got 65, expected at most 64"
    yield Case("codec-tensors", frame, pb.REASON_LIMIT_EXCEEDED, (fragment,), OPENED)
    frame = set_codec(1, codec_state(seed=1))
    fragment = "version: got 1 again with other content, expected a new number"
    yield Case("codec-conflict", frame, pb.REASON_CODEC_CONFLICT, (fragment,), READY)


def _messages() -> Iterator[Case]:
    invalid, shape = pb.REASON_FIELD_INVALID, pb.REASON_SHAPE_MISMATCH
    unknown = "codec_version: got 3, held are [1]; send it"
    for frame in (exchange(codec_version=3), observe(codec_version=3)):
        kind = frame.WhichOneof("frame")
        yield Case(f"{kind}-unknown-codec", frame, pb.REASON_CODEC_UNKNOWN, (unknown,), READY)
    for frame in (exchange(turn=0), observe(turn=0)):
        kind = frame.WhichOneof("frame")
        yield Case(f"{kind}-turn-0", frame, invalid, ("turn: got 0, expected a positive",), READY)
    frame = exchange(content=torch.ones(2, 3))
    yield Case("message-rank", frame, shape, ("message: got shape [2, 3], expected [any, 2, 3]",), READY)
    frame = exchange(content=torch.ones(2, 2, 4))
    yield Case("message-width", frame, shape, ("message: got shape [2, 2, 4], expected [any",), READY)
    frame = exchange(content=torch.ones(2, 3, 3))
    yield Case("message-length", frame, shape, ("message: got shape [2, 3, 3], expected [any",), READY)
    frame = exchange(content=torch.ones(2, 2, 3, dtype=torch.int64))
    fragments = ("message: got int64, expected float32 or",)
    yield Case("message-type", frame, pb.REASON_DATA_TYPE_MISMATCH, fragments, READY)
    frame = exchange(content=_cut(message()))
    fragments = ("message: got 47 bytes, expected 48 for float32",)
    yield Case("message-bytes", frame, pb.REASON_TENSOR_INVALID, fragments, READY)
    frame = exchange(content=_cut(message(), data_type=0))
    yield Case("message-untyped", frame, pb.REASON_TENSOR_INVALID, ("message: got data_type 0",), READY)
    for value in (float("nan"), float("inf")):
        frame = exchange(content=_message(value, dtype=torch.bfloat16))
        yield Case(f"message-{value}", frame, pb.REASON_NOT_FINITE, ("message: got NaN or inf",), READY)
    frame = exchange(content=torch.ones(5, 2, 3))
    fragments = ("message rows: got 5, expected at most 4",)
    yield Case("message-rows", frame, pb.REASON_LIMIT_EXCEEDED, fragments, READY)
    frame = exchange(content=torch.ones(0, 2, 3))
    yield Case("message-empty", frame, invalid, ("message rows: got 0, expected at least 1",), READY)
    frame = exchange(content=torch.ones(2, 7, 3))
    fragments = ("message positions: got 7, expected at most 6",)
    yield Case("message-long", frame, pb.REASON_LIMIT_EXCEEDED, fragments, FREED)
    frame = exchange(content=torch.ones(2, 0, 3))
    yield Case("message-no-position", frame, invalid, ("message positions: got 0, expected at",), FREED)
    frame = exchange(mask=torch.tensor([[True, False], [False, False]]))
    yield Case("mask-empty-row", frame, invalid, ("mask: got a row without a valid position",), READY)
    frame = exchange(mask=torch.ones(2, 3, dtype=torch.bool))
    yield Case("mask-shape", frame, shape, ("mask: got shape [2, 3], expected [2, 2]",), READY)
    frame = exchange(mask=torch.ones(2, 2))
    fragments = ("mask: got float32, expected bool",)
    yield Case("mask-type", frame, pb.REASON_DATA_TYPE_MISMATCH, fragments, READY)
    frame = exchange(turn=5, content=message(seed=1))
    fragments = ("turn: got 5 again with other content, expected a new number",)
    yield Case("turn-conflict", frame, pb.REASON_TURN_CONFLICT, fragments, REPLIED)


def _inputs() -> Iterator[Case]:
    invalid, limit = pb.REASON_FIELD_INVALID, pb.REASON_LIMIT_EXCEEDED
    neither = ("inputs: got neither of texts and tensors, expected exactly one",)
    yield Case("inputs-missing", exchange(), invalid, neither, BESIDE)
    both = exchange(inputs={"ids": ids()})
    both.exchange.inputs.texts.append("a text")
    yield Case("inputs-both", both, invalid, ("inputs: got both of texts and tensors",), BESIDE)
    frame = exchange(inputs={"ids": ids(3)})
    yield Case("inputs-rows", frame, invalid, ("inputs[ids]: got 3 rows, expected 2 as in mess",), BESIDE)
    yield Case("observe-nothing", observe(inputs=[]), invalid, neither, READY)
    frame = observe(inputs=["a", "b"])
    yield Case("texts", frame, invalid, ("inputs.texts: got 2 texts, expected none",), READY)
    frame = observe(inputs=["a"] * 5)
    yield Case("many-texts", frame, limit, ("input rows: got 5, expected at most 4",), READY)
    frame = observe(inputs={"ids": ids(5)})
    yield Case("many-rows", frame, limit, ("inputs[ids] rows: got 5, expected at most 4",), READY)
    frame = observe(inputs={"ids": ids(0)})
    yield Case("no-rows", frame, invalid, ("inputs[ids] rows: got 0, expected at least 1",), READY)
    frame = observe(inputs={"ids": ids(2, 6)})
    yield Case("long", frame, limit, ("inputs[ids] positions: got 6, expected at most 5",), READY)
    frame = observe(inputs={f"x{number}": torch.tensor(3) for number in range(1025)})
    yield Case("many-tensors", frame, limit, ("input tensors: got 1025, expected at most 1024",), READY)
    frame = observe(inputs={"ids": torch.tensor(3)})
    yield Case("scalar", frame, invalid, ("inputs[ids]: got a scalar, expected the batch",), READY)
    frame = observe(inputs={"ids": ids() + 30})
    yield Case("id-range", frame, invalid, ("inputs[ids]: got the value", "expected 0 to 31"), READY)
    frame = observe(inputs={"ids": ids(), "other": torch.ones(2)})
    yield Case("unknown-input", frame, invalid, ("inputs: got the unknown name 'other'",), READY)
    frame = observe(inputs={"ids": torch.full((2, 4), torch.nan)})
    yield Case("nan-input", frame, pb.REASON_NOT_FINITE, ("inputs[ids]: got NaN or infinity",), READY)
    frame = observe()
    frame.observe.inputs.tensors.append(frame.observe.inputs.tensors[0])
    yield Case("twice", frame, pb.REASON_TENSOR_INVALID, ("inputs: got 'ids' twice, expected",), READY)


def _observations() -> Iterator[Case]:
    invalid = pb.REASON_FIELD_INVALID
    yield Case("no-kinds", observe(kinds=()), invalid, ("kinds: got none, expected some of OBSERV",), READY)
    frame = observe(kinds=[ObservationKind.LOWER_STATE] * 8)
    yield Case("many-kinds", frame, invalid, ("kinds: got 8, expected each of 7 at most once",), READY)
    for kind in (0, 8):
        yield Case(f"kind-{kind}", observe(kinds=(kind,)), invalid, (f"kinds: got {kind}, exp",), READY)
    frame = observe(mask=torch.zeros(2, 3, dtype=torch.bool))
    yield Case("observe-mask", frame, invalid, ("mask: got a row without a valid position",), FREED)
    frame = observe(mask=torch.ones(3, 3, dtype=torch.bool))
    fragments = ("mask: got shape [3, 3], expected [2, any]",)
    yield Case("observe-mask-rows", frame, pb.REASON_SHAPE_MISMATCH, fragments, FREED)
    frame = observe(mask=torch.ones(2, 7, dtype=torch.bool))
    fragments = ("mask positions: got 7, expected at most 6",)
    yield Case("observe-long-mask", frame, pb.REASON_LIMIT_EXCEEDED, fragments, FREED)
    frame = observe(kinds=(ObservationKind.LOGITS,))
    yield Case("no-head", frame, pb.REASON_UNSUPPORTED, ("logits: got a teacher without a head",), READY)


def _gradients() -> Iterator[Case]:
    invalid = pb.REASON_FIELD_INVALID
    fragments = ("turn: got 6, which is not kept; send it again",)
    yield Case("unknown-turn", backward(6), pb.REASON_TURN_UNKNOWN, fragments, REPLIED)
    before = (*READY, exchange(turn=5, wants_gradient=False))
    fragments = ("turn: got a Backward of a turn with wants_gradient false",)
    yield Case("unwanted-gradient", backward(5), invalid, fragments, before)
    frame = backward(5, {"message": torch.ones(2, 2, 3)})
    fragments = ("gradients: got 'message', expected each of ['reply'] at most once",)
    yield Case("gradient-name", frame, invalid, fragments, REPLIED)
    frame = backward(5, [("reply", torch.ones(2, 2, 3))] * 2)
    yield Case("gradient-twice", frame, invalid, ("gradients: got 'reply', expected each",), REPLIED)
    yield Case("no-gradient", backward(5, {}), invalid, ("gradients: got none, expected some",), REPLIED)
    frame = backward(5, {"reply": torch.ones(2, 2)})
    fragments = ("gradients[reply]: got shape [2, 2], expected [2, 2, 3]",)
    yield Case("gradient-shape", frame, pb.REASON_SHAPE_MISMATCH, fragments, REPLIED)
    frame = backward(5, {"reply": torch.ones(2, 2, 3, dtype=torch.int32)})
    fragments = ("gradients[reply]: got int32, expected float32 or",)
    yield Case("gradient-type", frame, pb.REASON_DATA_TYPE_MISMATCH, fragments, REPLIED)
    frame = backward(5, {"reply": _message(float("inf"))})
    fragments = ("gradients[reply]: got NaN or infinity",)
    yield Case("gradient-inf", frame, pb.REASON_NOT_FINITE, fragments, REPLIED)


def _after_close() -> Iterator[Case]:
    for frame in (exchange(), observe(), set_codec(2), backward(5)):
        kind = frame.WhichOneof("frame")
        fragments = ("frame: got one after close, expected none",)
        yield Case(f"{kind}-after-close", frame, pb.REASON_PROTOCOL_VIOLATION, fragments, (*REPLIED, close()))


CASES = [
    *_before_the_conversation(),
    *_codecs(),
    *_messages(),
    *_inputs(),
    *_observations(),
    *_gradients(),
]
CASES_AFTER_CLOSE = list(_after_close())
