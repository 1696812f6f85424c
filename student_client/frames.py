"""Builds the frames of turns, splitting batches by rows so that each fits.

Batches are split, tensors are not: the service sees whole rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from preceptor import compression, wire
from preceptor.compression import WireType
from preceptor.terms import OBSERVATION_KIND_NUMBERS, ObservationKind
from preceptor.v1 import teacher_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["TeacherInputs", "exchange_frames", "join_rows", "num_rows", "observe_frames"]

_ELEMENT_BYTES = {
    WireType.FLOAT32: 4.0,
    WireType.FLOAT16: 2.0,
    WireType.BFLOAT16: 2.0,
    WireType.INT8: 1.0 + 4.0 / compression.BLOCK_SIZE,  # and its share of a block's scale
}

# Texts, one a row, or tensors by name, the batch first.
TeacherInputs: TypeAlias = Sequence[str] | Mapping[str, Tensor]


def num_rows(inputs: TeacherInputs) -> int:
    """Returns the batch size of a teacher's inputs.

    Raises:
        TypeError: they are one text.
        ValueError: there are none, or they have no rows.
    """
    if isinstance(inputs, str):
        raise TypeError("inputs: got a str, expected a sequence of texts or tensors by name")
    if len(inputs) == 0:
        raise ValueError("inputs: got none, expected texts or tensors by name")
    rows = next(iter(inputs.values())).shape[0] if isinstance(inputs, Mapping) else len(inputs)
    if rows == 0:
        raise ValueError("inputs: got no rows, expected at least one")
    return rows


def exchange_frames(
    message: Tensor,
    mask: Tensor,
    inputs: TeacherInputs | None,
    *,
    wire_type: WireType,
    wants_gradient: bool,
    max_bytes: int,
    max_rows: int | None = None,
) -> list[pb.Exchange]:
    """Builds the Exchange frames of a batch.

    Args:
        message: [B, K, M].
        mask: [B, K], bool.
        inputs: of the same B rows, or None.
        wire_type: of the message on the wire.
        wants_gradient: whether gradients will follow.
        max_bytes: about how large a frame may be.
        max_rows: rows of a frame at most; None: as many as fit.

    Raises:
        ValueError: there are no rows, or they do not match.
    """
    batch = message.shape[0]
    if batch == 0:
        raise ValueError("hidden_states: got no rows, expected at least one")
    if inputs is not None and num_rows(inputs) != batch:
        raise ValueError(f"inputs: got {num_rows(inputs)} rows, expected {batch} as in hidden_states")
    message_bytes = math.ceil(message[:1].numel() * _ELEMENT_BYTES[wire_type])
    row_bytes = message_bytes + mask[:1].numel() + _row_bytes(inputs)
    rows = _rows_that_fit(min(batch, max_rows or batch), row_bytes, max_bytes)
    full = bool(mask.all())
    return [
        pb.Exchange(
            message=compression.encode(message[start : start + rows], wire_type),
            mask=None if full else wire.encode(mask[start : start + rows]),
            inputs=None if inputs is None else _encode_inputs(inputs, start, start + rows),
            wants_gradient=wants_gradient,
        )
        for start in range(0, batch, rows)
    ]


def observe_frames(
    inputs: TeacherInputs,
    *,
    kinds: Collection[ObservationKind],
    message_mask: Tensor | None,
    wants_gradient: bool,
    max_bytes: int,
    max_rows: int | None = None,
    ahead: bool = False,
) -> Iterator[pb.Observe]:
    """Yields the Observe frames of a batch.

    Args:
        inputs: texts or tensors by name.
        kinds: what to return.
        message_mask: [B, K], bool, or None.
        wants_gradient: whether gradients will follow.
        max_bytes: about how large a frame may be.
        max_rows: rows of a frame at most; None: as many as fit.
        ahead: whether the inputs are only to be read ahead.
    """
    batch = num_rows(inputs)
    mask_bytes = 0 if message_mask is None else message_mask[:1].numel()
    rows = _rows_that_fit(min(batch, max_rows or batch), _row_bytes(inputs) + mask_bytes, max_bytes)
    numbers = [OBSERVATION_KIND_NUMBERS[kind] for kind in sorted(kinds)]
    for start in range(0, batch, rows):
        yield pb.Observe(
            inputs=_encode_inputs(inputs, start, start + rows),
            kinds=numbers,
            mask=None if message_mask is None else wire.encode(message_mask[start : start + rows]),
            wants_gradient=wants_gradient,
            ahead=ahead,
        )


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """Puts the values of a split batch together, [rows, ...] each to [B, ...].

    Each part was tokenized by itself, so sequences may differ in length; shorter ones are padded with zeros.
    """
    if len(parts) == 1:
        return parts[0]
    lengths = {part.shape[1] for part in parts if part.ndim > 1}
    if len(lengths) > 1:
        tail = (0, 0) * (parts[0].ndim - 2)  # `pad` counts from the last axis
        parts = [functional.pad(part, (*tail, 0, max(lengths) - part.shape[1])) for part in parts]
    return torch.cat(list(parts))


def _rows_that_fit(most: int, row_bytes: int, max_bytes: int) -> int:
    frame_bytes = max(max_bytes - 4096, 1)  # room for names and lengths
    return max(1, min(most, math.floor(frame_bytes / max(row_bytes, 1))))


def _row_bytes(inputs: TeacherInputs | None) -> int:
    if inputs is None:
        return 0
    if isinstance(inputs, Mapping):
        return sum(tensor[:1].nbytes for tensor in inputs.values())
    return max(len(text.encode()) + 8 for text in inputs)


def _encode_inputs(inputs: TeacherInputs, start: int, end: int) -> pb.Inputs:
    if isinstance(inputs, Mapping):
        parts = {name: tensor[start:end] for name, tensor in inputs.items()}
        return pb.Inputs(tensors=wire.encode_named(parts))
    return pb.Inputs(texts=inputs[start:end])
