"""How wide tensors travel: the types a conversation may agree on, and blockwise int8.

A block of `BLOCK_SIZE` elements, in row-major order, shares one scale s = max|x| / 127 and each element
travels as round(x / s), one byte. The error of an element is at most s / 2, that is 1/254 of the largest
magnitude of its block, whatever the other blocks hold (absmax quantization, as in arXiv 2110.02861 without
its non-linear code book).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional

from preceptor import wire
from preceptor.terms import parse
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1 import tensor_pb2 as tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BLOCK_SIZE", "Compression", "WireType", "encode", "encode_named", "quantize"]

BLOCK_SIZE = 64
_LARGEST = 127.0
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


class WireType(StrEnum):
    """A type in which floating-point tensors travel; see `DataType` of the protocol."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


_TO_PB: dict[WireType, tensors.DataType] = {
    WireType.FLOAT32: tensors.DATA_TYPE_FLOAT32,
    WireType.FLOAT16: tensors.DATA_TYPE_FLOAT16,
    WireType.BFLOAT16: tensors.DATA_TYPE_BFLOAT16,
    WireType.INT8: tensors.DATA_TYPE_INT8_BLOCKS,
}
_FROM_PB = {data_type: wire_type for wire_type, data_type in _TO_PB.items()}


class Compression(BaseModel):
    """What a conversation agrees on: the types of messages, replies and gradients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message: WireType = Field(default=WireType.FLOAT32, description="Of messages.")
    reply: WireType = Field(default=WireType.FLOAT32, description="Of replies and observations.")
    gradient: WireType = Field(
        default=WireType.FLOAT32, description="Of gradients, both ways, also those of the codec."
    )

    @classmethod
    def all(cls, wire_type: WireType | str) -> Compression:
        """Returns the agreement to send everything in one type.

        Raises:
            ValueError: the type is unknown.
        """
        one = parse(WireType, wire_type, "compression")
        return cls(message=one, reply=one, gradient=one)

    @classmethod
    def of(cls, types: Compression | WireType | str) -> Compression:
        """Returns an agreement as it is, or the one to send everything in a type.

        Raises:
            ValueError: the type is unknown.
        """
        return types if isinstance(types, Compression) else cls.all(types)

    def to_proto(self) -> pb.Compression:
        """Returns the agreement as a protocol message."""
        return pb.Compression(
            message=_TO_PB[self.message], reply=_TO_PB[self.reply], gradient=_TO_PB[self.gradient]
        )

    @classmethod
    def from_proto(cls, message: pb.Compression) -> Compression:
        """Reads an agreement from a protocol message; what is not set is float32.

        Raises:
            ValueError: naming the field that is out of range.
        """
        types = {}
        for name in cls.model_fields:
            data_type = getattr(message, name) or tensors.DATA_TYPE_FLOAT32
            if data_type not in _FROM_PB:
                known = ", ".join(tensors.DataType.Name(each) for each in _FROM_PB)
                raise ValueError(f"compression.{name}: got {data_type}, expected one of {known}")
            types[name] = _FROM_PB[data_type]
        return cls(**types)


def encode(tensor: torch.Tensor, wire_type: WireType) -> tensors.Tensor:
    """Encodes a floating-point tensor; other tensors travel as they are."""
    if not tensor.is_floating_point():
        return wire.encode(tensor)
    if wire_type is not WireType.INT8:
        return wire.encode(tensor, getattr(torch, wire_type.value))
    data, scales = quantize(tensor.detach())
    return tensors.Tensor(
        data_type=tensors.DATA_TYPE_INT8_BLOCKS,
        shape=list(tensor.shape),
        data=data.cpu().numpy().tobytes(),
        block_size=BLOCK_SIZE,
        scales=scales.cpu().numpy().tobytes(),
    )


def encode_named(values: Mapping[str, torch.Tensor], wire_type: WireType) -> list[tensors.NamedTensor]:
    """Encodes named tensors, the floating-point ones in `wire_type`."""
    return [tensors.NamedTensor(name=name, tensor=encode(value, wire_type)) for name, value in values.items()]


def quantize(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds a tensor of finite values to one byte an element.

    Args:
        tensor: any shape, floating point.

    Returns:
        The elements in row-major order, [N], int8, and the scales, [ceil(N / BLOCK_SIZE)], float32.
    """
    flat = tensor.float().reshape(-1)
    if num_missing := -flat.numel() % BLOCK_SIZE:
        flat = functional.pad(flat, (0, num_missing))
    blocks = flat.reshape(-1, BLOCK_SIZE)
    scales = _scales(blocks.abs().amax(1))
    steps = torch.where(scales > 0, scales, 1.0)[:, None]
    rounded = (blocks / steps).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8)
    return rounded.reshape(-1)[: tensor.numel()], scales


def _scales(largest: torch.Tensor) -> torch.Tensor:
    """Returns the scale of each block from its largest magnitude; not finite where that is not finite."""
    scales = largest / _LARGEST
    reach = scales * _LARGEST
    # A subnormal scale is coarse: one that was rounded down, maybe to 0, would not reach the largest element.
    is_short = (scales < _SMALLEST_NORMAL) & (reach < largest)
    scales = torch.where(is_short, torch.nextafter(scales, largest), scales)
    # One that was rounded up may overflow when it is multiplied again.
    return torch.where(
        reach.isinf() & largest.isfinite(), torch.nextafter(scales, reach.new_zeros(())), scales
    )
