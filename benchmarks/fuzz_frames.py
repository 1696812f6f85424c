"""What `benchmarks.fuzz` sends: frames that hypothesis makes up, and good streams with broken bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st

from preceptor import wire
from preceptor.codec import CodecKind, CodecSpec, TeacherCodec
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1 import tensor_pb2 as tensors

if TYPE_CHECKING:
    import random

    from hypothesis.strategies import SearchStrategy

__all__ = ["SPEC", "broken", "frames", "good_stream", "tensors_of_any_kind"]

SPEC = CodecSpec(kind=CodecKind.LINEAR, message_dim=4)
_SIZES = (0, 1, 2, 3, 4, 7, 2**16, 2**31, 2**40, 2**62)
_NUMBERS = st.integers(0, 20) | st.sampled_from([2**31 - 1])
_COUNTERS = st.integers(0, 4) | st.sampled_from([2**32, 2**64 - 1])


def good_stream(hidden_dim: int, *, deterministic: bool = False) -> list[pb.ConverseRequest]:
    """Returns a whole conversation: Open, SetCodec, two Exchanges, the first one's Backward, Close."""
    torch.manual_seed(0)
    opening = pb.Open(codec=SPEC.to_proto(), reading=pb.READING_REPLACE, deterministic=deterministic)
    state = TeacherCodec(SPEC, hidden_dim).state_dict()
    message = torch.randn(2, 3, 4)
    exchanges = [
        pb.Exchange(turn=turn, codec_version=1, message=wire.encode(message), wants_gradient=True)
        for turn in (1, 2)
    ]
    backward = pb.Backward(turn=1, gradients=wire.encode_named({"reply": torch.ones_like(message)}))
    return [
        pb.ConverseRequest(open=opening),
        pb.ConverseRequest(set_codec=pb.SetCodec(version=1, tensors=wire.encode_named(state), complete=True)),
        *(pb.ConverseRequest(exchange=exchange) for exchange in exchanges),
        pb.ConverseRequest(backward=backward),
        pb.ConverseRequest(close=pb.Close()),
    ]


def broken(content: bytes, numbers: random.Random) -> bytes:
    """Returns bytes with a few flipped, cut out, repeated or put in."""
    changed = bytearray(content)
    for _ in range(numbers.randint(1, 4)):
        place = numbers.randrange(len(changed) + 1)
        match numbers.randrange(4):
            case 0 if place < len(changed):
                changed[place] ^= 1 << numbers.randrange(8)
            case 1:
                del changed[place : place + numbers.randint(1, 16)]
            case 2:
                changed[place:place] = changed[place : place + numbers.randint(1, 16)]
            case _:
                changed[place:place] = numbers.randbytes(numbers.randint(1, 8))
    return bytes(changed)


def tensors_of_any_kind() -> SearchStrategy[tensors.Tensor]:
    """Tensors whose type, shape and bytes need not have to do with each other, and some that are right."""
    anything = st.builds(
        tensors.Tensor,
        data_type=_NUMBERS,
        shape=st.lists(st.sampled_from(_SIZES), max_size=10),
        data=st.binary(max_size=96),
    )
    floats = st.floats(width=32)  # also NaN and infinity
    right = st.lists(floats, min_size=12, max_size=12).map(
        lambda values: wire.encode(torch.tensor(values).reshape(1, 3, 4))
    )
    return anything | right


def frames() -> SearchStrategy[pb.ConverseRequest]:
    """Frames of all kinds, each field right or not, in no order."""
    tensor = tensors_of_any_kind()
    named = st.builds(
        tensors.NamedTensor,
        name=st.sampled_from(["reply", "ids", "decoder.body.0.weight", "encoder.body.weight", ""]),
        tensor=tensor,
    )
    kinds = {**_openings(named), **_turns(tensor, named)}
    made = [st.builds(pb.ConverseRequest, **{kind: content}) for kind, content in kinds.items()]
    return st.one_of(*made, st.just(pb.ConverseRequest()))


def _openings(named: SearchStrategy[tensors.NamedTensor]) -> dict[str, SearchStrategy[Any]]:
    return {
        "open": st.builds(
            pb.Open,
            codec=st.builds(pb.CodecSpec, kind=_NUMBERS, message_dim=_NUMBERS, message_len=_NUMBERS),
            reading=_NUMBERS,
            split_layer=_NUMBERS,
            tenant=st.text(max_size=12),
            deterministic=st.booleans(),
            expected_fingerprint=st.sampled_from(["", "another"]),
        ),
        "set_codec": st.builds(
            pb.SetCodec, version=_COUNTERS, tensors=st.lists(named, max_size=3), complete=st.booleans()
        ),
    }


def _turns(
    tensor: SearchStrategy[tensors.Tensor], named: SearchStrategy[tensors.NamedTensor]
) -> dict[str, SearchStrategy[Any]]:
    inputs = st.none() | st.builds(
        pb.Inputs, tensors=st.lists(named, max_size=2), texts=st.lists(st.text(max_size=8), max_size=2)
    )
    return {
        "exchange": st.builds(
            pb.Exchange,
            turn=_COUNTERS,
            codec_version=_COUNTERS,
            message=st.none() | tensor,
            mask=st.none() | tensor,
            inputs=inputs,
            wants_gradient=st.booleans(),
        ),
        "observe": st.builds(
            pb.Observe,
            turn=_COUNTERS,
            codec_version=_COUNTERS,
            kinds=st.lists(_NUMBERS, max_size=3),
            inputs=inputs,
            mask=st.none() | tensor,
            wants_gradient=st.booleans(),
            ahead=st.booleans(),
        ),
        "backward": st.builds(pb.Backward, turn=_COUNTERS, gradients=st.lists(named, max_size=2)),
        "close": st.just(pb.Close()),
    }
