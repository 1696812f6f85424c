"""Turns torch tensors into protocol tensors and back, without pickle.

The encoding is row-major and little-endian (see `tensor.proto`). Decoding checks type, rank and byte count
before it touches the data, then views the bytes that protobuf hands out in place: the result must be treated
as read-only. This module knows neither conversations nor gRPC.

Errors:
    WireError(ValueError)
    ├── TensorDecodeError      the bytes are no tensor
    ├── DataTypeMismatchError  a tensor of another element type than expected
    ├── ShapeMismatchError     a tensor of another shape than expected
    └── NotFiniteError         NaN or infinity
"""

from __future__ import annotations

import math
import sys
import warnings
from typing import TYPE_CHECKING

import torch

from preceptor.v1 import tensor_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = [
    "FLOAT_TYPES",
    "DataTypeMismatchError",
    "NotFiniteError",
    "ShapeMismatchError",
    "TensorDecodeError",
    "WireError",
    "check_shape",
    "data_type_name",
    "decode",
    "decode_named",
    "encode",
    "encode_named",
    "from_torch_dtype",
    "to_torch_dtype",
]

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("preceptor.wire reads tensors in place and needs a little-endian machine")

MAX_RANK = 8
_MAX_TENSOR_BYTES = 2**63 - 1  # torch counts bytes in int64, also those of an empty tensor's other axes

_DTYPES: dict[pb.DataType, torch.dtype] = {
    pb.DATA_TYPE_FLOAT32: torch.float32,
    pb.DATA_TYPE_FLOAT16: torch.float16,
    pb.DATA_TYPE_BFLOAT16: torch.bfloat16,
    pb.DATA_TYPE_INT64: torch.int64,
    pb.DATA_TYPE_INT32: torch.int32,
    pb.DATA_TYPE_UINT8: torch.uint8,
    pb.DATA_TYPE_BOOL: torch.bool,
}
_DATA_TYPES = {dtype: data_type for data_type, dtype in _DTYPES.items()}

FLOAT_TYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)

# torch warns once a process that a tensor over immutable bytes must not be written to. Every caller here
# knows; spend that one warning now.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


class WireError(ValueError):
    """A tensor on the wire is not what the receiver can use."""


class TensorDecodeError(WireError):
    """The element type is unknown or the bytes do not fit the shape."""


class DataTypeMismatchError(WireError):
    """The element type is not the expected one."""


class ShapeMismatchError(WireError):
    """The rank or a size is not the expected one."""


class NotFiniteError(WireError):
    """The tensor holds NaN or an infinity."""


def from_torch_dtype(dtype: torch.dtype) -> pb.DataType:
    """Returns the protocol's name of a torch dtype.

    Raises:
        TypeError: the protocol has no such type.
    """
    try:
        return _DATA_TYPES[dtype]
    except KeyError:
        known = ", ".join(str(known) for known in _DATA_TYPES)
        raise TypeError(f"{dtype} can't be sent; expected one of {known}") from None


def to_torch_dtype(data_type: pb.DataType, *, field: str) -> torch.dtype:
    """Returns the torch dtype of a protocol type.

    Raises:
        TensorDecodeError: the type is not set or unknown.
    """
    try:
        return _DTYPES[data_type]
    except KeyError:
        raise TensorDecodeError(
            f"{field}: got data_type {data_type}, expected one of "
            + ", ".join(pb.DataType.Name(known) for known in _DTYPES)
        ) from None


def data_type_name(dtype: torch.dtype) -> str:
    """Returns a dtype's name without `torch.`, for example "float32"."""
    return str(dtype).removeprefix("torch.")


def encode(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> pb.Tensor:
    """Encodes a tensor of any device and layout, after casting it to `dtype` if given.

    Raises:
        TypeError: the protocol has no such type.
    """
    data_type = from_torch_dtype(dtype or tensor.dtype)
    rows = tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
    # Not reshape(-1): a single element keeps whatever stride it had, and then can't be viewed as bytes.
    flat = rows.as_strided((rows.numel(),), (1,))
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return pb.Tensor(data_type=data_type, shape=list(tensor.shape), data=data)


def decode(
    message: pb.Tensor,
    *,
    field: str,
    dtypes: Collection[torch.dtype] | None = None,
    shape: Sequence[int | None] | None = None,
    finite: bool = False,
) -> torch.Tensor:
    """Decodes and checks a tensor; the result shares the message's bytes and must not be written to.

    Args:
        message: the encoded tensor.
        field: its name in errors.
        dtypes: the element types that are accepted; None: all.
        shape: the sizes that are accepted, None for an axis of any size; None: any shape.
        finite: whether NaN and infinities are refused.

    Raises:
        TensorDecodeError, DataTypeMismatchError, ShapeMismatchError, NotFiniteError: it is something else.
    """
    is_int8 = message.data_type == pb.DATA_TYPE_INT8_BLOCKS
    dtype = torch.float32 if is_int8 else to_torch_dtype(message.data_type, field=field)
    if dtypes is not None and dtype not in dtypes:
        wanted = " or ".join(data_type_name(wanted) for wanted in dtypes)
        raise DataTypeMismatchError(f"{field}: got {data_type_name(dtype)}, expected {wanted}")
    sizes = _sizes_of(message, dtype, field=field)
    if shape is not None:
        check_shape(sizes, shape, field=field)
    if is_int8:
        return _dequantize(message, sizes, field=field, finite=finite)
    num_bytes = math.prod(sizes) * dtype.itemsize
    data = message.data  # each access copies the bytes out of the protobuf arena
    if len(data) != num_bytes:
        raise TensorDecodeError(
            f"{field}: got {len(data)} bytes, expected {num_bytes} for {data_type_name(dtype)} {sizes}"
        )
    if num_bytes == 0:
        return torch.empty(sizes, dtype=dtype)
    tensor = torch.frombuffer(data, dtype=dtype if dtype is not torch.bool else torch.uint8)
    if dtype is torch.bool:
        tensor = tensor != 0  # any other byte in a bool is undefined behaviour
    if finite and dtype.is_floating_point and not _is_finite(tensor):
        raise NotFiniteError(f"{field}: got NaN or infinity, expected finite values")
    return tensor.reshape(sizes)


def _sizes_of(message: pb.Tensor, dtype: torch.dtype, *, field: str) -> list[int]:
    """Returns a shape that a tensor can have."""
    if len(message.shape) > MAX_RANK:  # there may be millions, so they are only counted
        raise TensorDecodeError(f"{field}: got {len(message.shape)} sizes, expected at most {MAX_RANK}")
    sizes = list(message.shape)
    if any(size < 0 for size in sizes):
        raise TensorDecodeError(f"{field}: got shape {sizes}, expected no negative size")
    if math.prod(max(size, 1) for size in sizes) * dtype.itemsize > _MAX_TENSOR_BYTES:
        raise TensorDecodeError(f"{field}: got shape {sizes}, expected at most {_MAX_TENSOR_BYTES} bytes")
    return sizes


def _dequantize(message: pb.Tensor, sizes: list[int], *, field: str, finite: bool) -> torch.Tensor:
    """Decodes DATA_TYPE_INT8_BLOCKS; see `preceptor.compression`."""
    num_elements, block_size = math.prod(sizes), message.block_size
    if block_size == 0:
        raise TensorDecodeError(f"{field}: got block_size 0, expected a positive number")
    num_blocks = -(-num_elements // block_size)
    data, scales = message.data, message.scales
    if len(data) != num_elements or len(scales) != 4 * num_blocks:
        raise TensorDecodeError(
            f"{field}: got {len(data)} bytes and {len(scales)} of scales, expected {num_elements} and "
            f"{4 * num_blocks} for int8 {sizes} in blocks of {block_size}"
        )
    if num_elements == 0:
        return torch.empty(sizes)
    steps = torch.frombuffer(scales, dtype=torch.float32)
    if not _is_finite(steps) or bool((steps < 0).any()):
        raise NotFiniteError(f"{field}: got a scale that is not finite or negative, expected it to be >= 0")
    values = torch.frombuffer(data, dtype=torch.int8).float()
    full = num_elements // block_size * block_size
    values[:full].view(-1, block_size).mul_(steps[: full // block_size, None])
    values[full:].mul_(steps[-1])
    if finite and not _is_finite(values):  # a scale near the largest float
        raise NotFiniteError(f"{field}: got NaN or infinity, expected finite values")
    return values.reshape(sizes)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Looks at the sum first, which is twenty times as fast and finite for all but huge finite values."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def check_shape(sizes: Sequence[int], expected: Sequence[int | None], *, field: str) -> None:
    """Checks sizes against expected ones, None for any.

    Raises:
        ShapeMismatchError: naming the field, what came and what was expected.
    """
    if len(sizes) != len(expected) or any(
        want is not None and got != want for got, want in zip(sizes, expected, strict=True)
    ):
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        raise ShapeMismatchError(f"{field}: got shape {list(sizes)}, expected [{wanted}]")


def encode_named(
    tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None = None
) -> list[pb.NamedTensor]:
    """Encodes named tensors; `dtype` casts the floating-point ones."""
    pairs = tensors.items() if hasattr(tensors, "items") else tensors
    return [
        pb.NamedTensor(name=name, tensor=encode(tensor, dtype if tensor.is_floating_point() else None))
        for name, tensor in pairs
    ]


def decode_named(
    messages: Iterable[pb.NamedTensor], *, field: str, finite: bool = False
) -> dict[str, torch.Tensor]:
    """Decodes named tensors.

    Raises:
        TensorDecodeError: a name comes twice, or a tensor is none.
        NotFiniteError: a value is not finite and `finite` is set.
    """
    tensors: dict[str, torch.Tensor] = {}
    for message in messages:
        if message.name in tensors:
            raise TensorDecodeError(f"{field}: got {message.name!r} twice, expected each name once")
        tensors[message.name] = decode(message.tensor, field=f"{field}[{message.name}]", finite=finite)
    return tensors
