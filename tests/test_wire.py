"""The wire: every tensor comes back bit for bit, and nothing else gets through."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preceptor import wire
from preceptor.v1 import tensor_pb2 as pb

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
SHAPES = st.lists(st.integers(0, 4), max_size=4)
ABSURD = st.sampled_from([2**31, 2**62, 2**63 - 1])


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Draws a tensor of any type and shape from raw bytes, so with NaN payloads, infinities and -0.0."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(SHAPES)
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    data = draw(st.binary(min_size=num_bytes, max_size=num_bytes))
    if not num_bytes:
        return torch.empty(shape, dtype=dtype)
    raw = torch.tensor(list(data), dtype=torch.uint8)
    return (raw % 2 == 0 if dtype is torch.bool else raw.view(dtype)).reshape(shape)


def _encoded() -> pb.Tensor:
    return wire.encode(torch.arange(6.0).reshape(2, 3))


@given(tensors())
def test_every_tensor_comes_back_bit_for_bit(tensor: torch.Tensor) -> None:
    message = pb.Tensor.FromString(wire.encode(tensor).SerializeToString())
    back = wire.decode(message, field="x")
    assert back.dtype is tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(_bits(back), _bits(tensor))


@given(tensors(), st.data())
def test_a_tensor_of_any_layout_is_sent_row_major(tensor: torch.Tensor, data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(tensor.ndim)))
    view = tensor.permute(axes)[..., ::2] if tensor.ndim else tensor
    back = wire.decode(wire.encode(view), field="x")
    assert back.shape == view.shape
    assert torch.equal(_bits(back), _bits(view))


def test_an_expanded_tensor_that_requires_a_gradient_is_sent() -> None:
    tensor = torch.ones(1, 3, requires_grad=True).expand(2, 3)
    assert wire.decode(wire.encode(tensor), field="x").tolist() == [[1.0] * 3] * 2


def test_the_encoding_is_the_documented_one() -> None:
    message = wire.encode(torch.tensor([[1.0, -2.0]]), torch.bfloat16)
    assert message.data_type == pb.DATA_TYPE_BFLOAT16
    assert list(message.shape) == [1, 2]
    assert message.data == b"\x80\x3f\x00\xc0"


@given(tensors(), st.binary(min_size=1, max_size=9))
def test_extended_bytes_are_refused(tensor: torch.Tensor, more: bytes) -> None:
    message = wire.encode(tensor)
    got, expected = len(message.data) + len(more), len(message.data)
    message.data += more
    with pytest.raises(wire.TensorDecodeError, match=f"x: got {got} bytes, expected {expected} for"):
        wire.decode(message, field="x")


@given(tensors().filter(lambda tensor: tensor.numel() > 0), st.data())
def test_truncated_bytes_are_refused(tensor: torch.Tensor, data: st.DataObject) -> None:
    message = wire.encode(tensor)
    expected = len(message.data)
    got = data.draw(st.integers(0, expected - 1))
    message.data = message.data[:got]
    with pytest.raises(wire.TensorDecodeError, match=f"x: got {got} bytes, expected {expected} for"):
        wire.decode(message, field="x")


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=10), st.integers(-1, 40), st.binary(max_size=64))
def test_corrupt_tensors_give_a_tensor_or_a_wire_error(shape: list[int], data_type: int, data: bytes) -> None:
    message = pb.Tensor(data_type=data_type, shape=shape, data=data)  # type: ignore[arg-type]
    try:
        tensor = wire.decode(message, field="x")
    except wire.TensorDecodeError as error:
        assert str(error).startswith("x: got ")  # noqa: PT017 - most, not all, are refused
    else:
        assert list(tensor.shape) == shape
        assert tensor.numel() * tensor.element_size() == len(data)


@given(st.lists(ABSURD, min_size=1, max_size=7), st.lists(st.just(0), max_size=1), st.data())
def test_absurd_shapes_are_refused_without_allocating(
    sizes: list[int], zeros: list[int], data: st.DataObject
) -> None:
    shape = data.draw(st.permutations(sizes + zeros))
    message = pb.Tensor(data_type=pb.DATA_TYPE_INT64, shape=shape)
    try:
        tensor = wire.decode(message, field="x")
    except wire.TensorDecodeError as error:
        assert "expected" in str(error)  # noqa: PT017 - [0, 2**31] is a tensor, [0, 2**62] is none
    else:
        assert tensor.numel() == 0
        assert len(sizes) == 1


@pytest.mark.parametrize("sizes", [[-1], [2, -3], [-(2**63)]])
def test_shapes_that_no_tensor_has_are_refused(sizes: list[int]) -> None:
    message = pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=sizes, data=b"\0")
    with pytest.raises(wire.TensorDecodeError, match=r"^x: got shape \[.*\], expected no negative size$"):
        wire.decode(message, field="x")


@pytest.mark.parametrize("num_sizes", [9, 1_000_000])
def test_sizes_that_are_too_many_are_only_counted(num_sizes: int) -> None:
    message = pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=[1] * num_sizes, data=b"\0")
    with pytest.raises(wire.TensorDecodeError, match=f"^x: got {num_sizes} sizes, expected at most 8$"):
        wire.decode(message, field="x")


@pytest.mark.parametrize("data_type", [0, 9, 99])
def test_unknown_types_are_refused(data_type: pb.DataType) -> None:
    message = pb.Tensor(data_type=data_type, shape=[1], data=b"\0")
    with pytest.raises(
        wire.TensorDecodeError, match=f"x: got data_type {data_type}, expected one of DATA_TYPE_FLOAT32, "
    ):
        wire.decode(message, field="x")


def test_other_bytes_in_a_bool_are_true() -> None:
    message = pb.Tensor(data_type=pb.DATA_TYPE_BOOL, shape=[4], data=b"\0\1\2\xff")
    assert wire.decode(message, field="x").tolist() == [False, True, True, True]


def test_an_unexpected_type_is_named() -> None:
    with pytest.raises(wire.DataTypeMismatchError, match=r"^x: got float32, expected int64 or bool$"):
        wire.decode(_encoded(), field="x", dtypes=(torch.int64, torch.bool))


@pytest.mark.parametrize("shape", [(2,), (2, 4), (3, None), (None, None, None), ()])
def test_an_unexpected_shape_is_named(shape: tuple[int | None, ...]) -> None:
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    with pytest.raises(wire.ShapeMismatchError) as caught:
        wire.decode(_encoded(), field="x", shape=shape)
    assert str(caught.value) == f"x: got shape [2, 3], expected [{wanted}]"
    assert wire.decode(_encoded(), field="x", shape=(None, 3)).shape == (2, 3)


@pytest.mark.parametrize("dtype", wire.FLOAT_TYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_on_request(dtype: torch.dtype, value: float) -> None:
    message = wire.encode(torch.tensor([0.0, value]), dtype)
    with pytest.raises(wire.NotFiniteError, match=r"^x: got NaN or infinity, expected finite values$"):
        wire.decode(message, field="x", finite=True)
    assert not torch.isfinite(wire.decode(message, field="x")).all()


def test_a_type_without_an_encoding_is_refused() -> None:
    with pytest.raises(TypeError, match=r"torch\.float64 can't be sent; expected one of torch\.float32, "):
        wire.encode(torch.zeros(1, dtype=torch.float64))
    assert wire.encode(torch.zeros(1, dtype=torch.float64), torch.float32).data == bytes(4)


def test_named_tensors_come_back_and_only_floats_are_cast() -> None:
    sent = {"ids": torch.tensor([1, 2]), "x": torch.tensor([1.5])}
    messages = wire.encode_named(sent, torch.float16)
    assert [wire.data_type_name(wire.to_torch_dtype(m.tensor.data_type, field="x")) for m in messages] == [
        "int64",
        "float16",
    ]
    back = wire.decode_named(wire.encode_named(sent.items()), field="inputs")
    assert list(back) == ["ids", "x"]
    assert all(torch.equal(back[name], tensor) for name, tensor in sent.items())


def test_named_tensors_say_which_one_is_wrong() -> None:
    good, bad = wire.encode_named({"good": torch.ones(1), "bad": torch.tensor([torch.nan])})
    with pytest.raises(wire.TensorDecodeError, match=r"^inputs: got 'good' twice, expected each name once$"):
        wire.decode_named([good, good], field="inputs")
    with pytest.raises(wire.NotFiniteError, match=r"^inputs\[bad\]: got NaN"):
        wire.decode_named([good, bad], field="inputs", finite=True)
    bad.tensor.data = b""
    with pytest.raises(wire.TensorDecodeError, match=r"^inputs\[bad\]: got 0 bytes, expected 4 for"):
        wire.decode_named([good, bad], field="inputs")
