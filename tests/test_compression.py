"""Compression: an element is off by at most half its block's scale, and no bad bytes become a tensor."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preceptor import wire
from preceptor.compression import BLOCK_SIZE, Compression, WireType, encode, encode_named, quantize
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1 import tensor_pb2 as tensors

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SMALLEST, LARGEST = 2.0**-149, torch.finfo(torch.float32).max
# One rounding of the quotient and one of the product, of numbers up to 127 steps.
SLACK = 1 + 4 * 127 * 2.0**-23
SHAPES = ((), (0,), (3, 0, 2), (1,), (BLOCK_SIZE,), (BLOCK_SIZE + 1,), (5, 7), (2, 3, 64), (4, 33, 1))


def round_trip(tensor: torch.Tensor) -> torch.Tensor:
    message = tensors.Tensor.FromString(encode(tensor, WireType.INT8).SerializeToString())
    return wire.decode(message, field="x", dtypes=(torch.float32,), shape=tuple(tensor.shape), finite=True)


def assert_within_bound(tensor: torch.Tensor) -> None:
    back = round_trip(tensor)
    assert back.dtype is torch.float32
    assert back.shape == tensor.shape
    _, scales = quantize(tensor)
    exact = tensor.double().reshape(-1)
    bounds = scales.double().repeat_interleave(BLOCK_SIZE)[: exact.numel()] / 2
    assert bool(((back.double().reshape(-1) - exact).abs() <= bounds * SLACK).all())
    for block, scale in zip(torch.split(exact, BLOCK_SIZE), scales.double(), strict=False):
        largest = block.abs().max().item()
        assert scale.item() <= max(largest / 127 * (1 + 2.0**-23), SMALLEST if largest else 0.0) + SMALLEST


def assert_wire_error(message: tensors.Tensor, error: type[wire.WireError], text: str) -> None:
    with pytest.raises(error, match=text):
        wire.decode(message, field="x", finite=True)


@given(st.lists(FLOATS, max_size=3 * BLOCK_SIZE))
def test_an_element_is_off_by_at_most_half_its_blocks_scale(values: list[float]) -> None:
    assert_within_bound(torch.tensor(values))


@given(st.integers(-149, 127), st.integers(0, 2**32 - 1), st.sampled_from(SHAPES))
def test_the_bound_holds_for_all_magnitudes_and_shapes(
    exponent: int, seed: int, shape: tuple[int, ...]
) -> None:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    assert_within_bound((values.double() * 2.0**exponent).float())


@pytest.mark.parametrize("count", [1, 63, 64, 126, 127, 128, 190, 191, 254, 100_000])
def test_subnormal_elements_keep_the_bound(count: int) -> None:
    assert_within_bound(torch.tensor([count * SMALLEST, SMALLEST, -count * SMALLEST, 0.0]))


def test_the_largest_floats_come_back_finite_and_exact() -> None:
    tensor = torch.tensor([LARGEST, -LARGEST, LARGEST / 2, 0.0])
    assert_within_bound(tensor)
    assert torch.allclose(round_trip(tensor)[:2], tensor[:2], rtol=1e-6)


def test_zeros_and_largest_elements_come_back_exactly() -> None:
    assert torch.equal(round_trip(torch.zeros(70)), torch.zeros(70))
    tensor = torch.tensor([1.0, -127.0, 0.0, 64.0])
    assert torch.equal(round_trip(tensor), tensor)


def test_a_block_does_not_suffer_from_its_neighbours() -> None:
    tensor = torch.cat([torch.full((BLOCK_SIZE,), 1e30), torch.full((5,), 1e-30)])
    assert torch.allclose(round_trip(tensor), tensor, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point_type_and_layout_is_taken(dtype: torch.dtype) -> None:
    tensor = torch.randn(6, 40).to(dtype).t().requires_grad_()
    assert torch.equal(round_trip(tensor), round_trip(tensor.detach().float().contiguous()))


def test_a_byte_an_element_and_four_a_block_travel() -> None:
    message = encode(torch.randn(10, 64), WireType.INT8)
    assert (message.data_type, message.block_size) == (tensors.DATA_TYPE_INT8_BLOCKS, BLOCK_SIZE)
    assert (len(message.data), len(message.scales)) == (640, 40)


@pytest.mark.parametrize("wire_type", ["float32", "float16", "bfloat16"])
def test_the_other_types_are_casts(wire_type: str) -> None:
    tensor = torch.randn(3, 5)
    back = wire.decode(encode(tensor, WireType(wire_type)), field="x")
    assert wire.data_type_name(back.dtype) == wire_type
    assert torch.equal(back, tensor.to(back.dtype))


@pytest.mark.parametrize("wire_type", WireType)
def test_ids_and_masks_travel_as_they_are(wire_type: WireType) -> None:
    sent = {"ids": torch.tensor([[1, 2**40]]), "mask": torch.tensor([True, False])}
    back = wire.decode_named(encode_named(sent, wire_type), field="inputs")
    assert all(torch.equal(back[name], sent[name]) for name in sent)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_does_not_pass_for_a_tensor(value: float) -> None:
    assert_wire_error(
        encode(torch.tensor([1.0, value]), WireType.INT8), wire.NotFiniteError, "^x: got a scale that is not"
    )


@pytest.mark.parametrize("types", list(itertools.product(WireType, repeat=3)))
def test_an_agreement_comes_back(types: tuple[WireType, WireType, WireType]) -> None:
    agreed = Compression(message=types[0], reply=types[1], gradient=types[2])
    message = pb.Compression.FromString(agreed.to_proto().SerializeToString())
    assert Compression.from_proto(message) == agreed


def test_what_is_not_agreed_is_float32() -> None:
    assert Compression.from_proto(pb.Compression()) == Compression() == Compression.all("float32")
    some = Compression.from_proto(pb.Compression(reply=tensors.DATA_TYPE_INT8_BLOCKS))
    assert some == Compression(reply=WireType.INT8)


@pytest.mark.parametrize("field", ["message", "reply", "gradient"])
@pytest.mark.parametrize("data_type", [tensors.DATA_TYPE_INT64, tensors.DATA_TYPE_BOOL, 99])
def test_an_agreement_on_another_type_is_refused(field: str, data_type: tensors.DataType) -> None:
    with pytest.raises(
        ValueError, match=rf"^compression\.{field}: got {data_type}, expected one of DATA_TYPE_"
    ):
        Compression.from_proto(pb.Compression(**{field: data_type}))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^compression: got 'int4', expected one of float32, float16,"):
        Compression.all("int4")


@given(st.integers(1, 200), st.integers(1, 100), st.data())
def test_any_block_size_is_read(num_elements: int, block_size: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(-128, 127), min_size=num_elements, max_size=num_elements))
    num_blocks = -(-num_elements // block_size)
    scales = torch.tensor(
        data.draw(st.lists(st.integers(0, 9), min_size=num_blocks, max_size=num_blocks))
    ).float()
    message = tensors.Tensor(
        data_type=tensors.DATA_TYPE_INT8_BLOCKS,
        shape=[num_elements],
        data=torch.tensor(values, dtype=torch.int8).numpy().tobytes(),
        block_size=block_size,
        scales=scales.numpy().tobytes(),
    )
    expected = [value * scales[place // block_size].item() for place, value in enumerate(values)]
    assert wire.decode(message, field="x").tolist() == expected


def valid() -> tensors.Tensor:
    return encode(torch.randn(2, 50), WireType.INT8)


@pytest.mark.parametrize("num_bytes", [0, 99, 101, 400])
def test_another_number_of_elements_is_refused(num_bytes: int) -> None:
    message = valid()
    message.data = bytes(num_bytes)
    assert_wire_error(
        message,
        wire.TensorDecodeError,
        rf"^x: got {num_bytes} bytes and 8 of scales, expected 100 and 8 for int8",
    )


@pytest.mark.parametrize("num_bytes", [0, 4, 7, 9, 12])
def test_another_number_of_scales_is_refused(num_bytes: int) -> None:
    message = valid()
    message.scales = bytes(num_bytes)
    assert_wire_error(
        message, wire.TensorDecodeError, rf"^x: got 100 bytes and {num_bytes} of scales, expected"
    )


def test_a_block_size_of_0_or_of_another_number_of_blocks_is_refused() -> None:
    message = valid()
    for block_size, text in ((0, "^x: got block_size 0, expected a"), (30, "expected 100 and 16")):
        message.block_size = block_size
        assert_wire_error(message, wire.TensorDecodeError, text)
    assert_wire_error(
        tensors.Tensor(data_type=tensors.DATA_TYPE_INT8_BLOCKS, shape=[0]),
        wire.TensorDecodeError,
        "block_size 0",
    )


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0, -SMALLEST])
def test_a_scale_that_is_none_is_refused_even_where_any_value_is_taken(scale: float) -> None:
    message = valid()
    message.scales = torch.tensor([1.0, scale]).numpy().tobytes()
    with pytest.raises(
        wire.NotFiniteError, match=r"^x: got a scale that is not finite or negative, expected"
    ):
        wire.decode(message, field="x")


def test_finite_scales_whose_elements_overflow_are_refused_on_request() -> None:
    message = valid()
    message.scales = torch.tensor([1.0, LARGEST]).numpy().tobytes()
    assert_wire_error(message, wire.NotFiniteError, r"^x: got NaN or infinity, expected finite values$")


def test_it_counts_as_float32_of_its_shape() -> None:
    with pytest.raises(wire.DataTypeMismatchError, match=r"^x: got float32, expected bfloat16$"):
        wire.decode(valid(), field="x", dtypes=(torch.bfloat16,))
    with pytest.raises(wire.ShapeMismatchError, match=r"^x: got shape \[2, 50\], expected \[2, 51\]$"):
        wire.decode(valid(), field="x", shape=(2, 51))
    assert wire.decode(valid(), field="x", dtypes=wire.FLOAT_TYPES, shape=(None, 50)).shape == (2, 50)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=64),
    st.binary(max_size=16),
)
def test_corrupt_messages_give_a_tensor_or_a_wire_error(
    shape: list[int], block_size: int, data: bytes, scales: bytes
) -> None:
    message = tensors.Tensor(
        data_type=tensors.DATA_TYPE_INT8_BLOCKS, shape=shape, data=data, block_size=block_size, scales=scales
    )
    try:
        tensor = wire.decode(message, field="x", finite=True)
    except wire.WireError as error:
        assert str(error).startswith("x: got ")  # noqa: PT017 - most, not all, are refused
    else:
        assert list(tensor.shape) == shape
        assert tensor.numel() == len(data)
