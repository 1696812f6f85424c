"""Puts sequences of different lengths into one batch, padded on the right, and takes them out again.

Which turns may share a batch is decided by `length_bucket`: those whose lengths fall into one bucket, so that
at most a third of a batch is padding. Sequences never share a row of the batch: what is in one, also NaN,
can't reach another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from services.teacher.families.base import States

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = [
    "cut_to",
    "join_inputs",
    "length_bucket",
    "pack",
    "pad_to",
    "pad_to_buckets",
    "stack_rows",
    "unpack",
]


def length_bucket(length: int) -> int:
    """Returns the smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is at least `length`."""
    bucket = 1
    while bucket < length:
        power = 1 << (bucket.bit_length() - 1)
        bucket = power + max(power // 2, 1) if bucket == power else 2 * power
    return bucket


def pad_to(states: States, length: int) -> States:
    """Pads [B, L, D] with zeros that are not valid to [B, length, D]."""
    missing = length - states.mask.shape[1]
    if missing == 0:
        return states
    return States(
        functional.pad(states.hidden_states, (0, 0, 0, missing)), functional.pad(states.mask, (0, missing))
    )


def pack(chunks: Sequence[States]) -> States:
    """Joins chunks of rows, [B_i, L_i, D] each, to [sum B_i, max L_i, D]."""
    if len(chunks) == 1:
        return chunks[0]
    length = max(chunk.mask.shape[1] for chunk in chunks)
    padded = [pad_to(chunk, length) for chunk in chunks]
    return States(
        torch.cat([chunk.hidden_states for chunk in padded]), torch.cat([chunk.mask for chunk in padded])
    )


def pad_to_buckets(states: States) -> States:
    """Pads rows and positions to `length_bucket` sizes; a row that is added has no valid position."""
    rows, length = states.mask.shape
    wider = pad_to(states, length_bucket(length))
    missing = length_bucket(rows) - rows
    if missing == 0:
        return wider
    return States(
        functional.pad(wider.hidden_states, (0, 0, 0, 0, 0, missing)),
        functional.pad(wider.mask, (0, 0, 0, missing)),
    )


def cut_to(states: States, like: States) -> States:
    """Cuts rows and positions that were added at the end, to the shape of `like`."""
    rows, length = like.mask.shape
    return States(states.hidden_states[:rows, :length], like.mask)


def unpack(packed: States, chunks: Sequence[States]) -> list[States]:
    """Takes what `pack` joined apart again, with the shapes of `chunks`."""
    if len(chunks) == 1:
        return [packed]
    parts = torch.split(packed.hidden_states, [chunk.mask.shape[0] for chunk in chunks])
    return [
        States(part[:, : chunk.mask.shape[1]], chunk.mask) for part, chunk in zip(parts, chunks, strict=True)
    ]


def join_inputs(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Joins the inputs of rows, shorter ones padded with zeros, which their mask leaves out."""
    joined = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if tensors[0].ndim > 1:
            length = max(tensor.shape[1] for tensor in tensors)
            tail = (0, 0) * (tensors[0].ndim - 2)  # `pad` counts from the last axis
            tensors = [functional.pad(tensor, (*tail, 0, length - tensor.shape[1])) for tensor in tensors]
        joined[name] = torch.cat(tensors)
    return joined


def stack_rows(rows: Sequence[tuple[Tensor, ...]], length: int, device: torch.device) -> States:
    """Joins the states of rows, [b, l, D] and [b, l] each, padded to the longest, at least to `length`."""
    length = max(length, *(mask.shape[1] for _, mask in rows))
    if len(rows) == 1:
        return pad_to(States(rows[0][0].to(device), rows[0][1].to(device)), length)
    first = rows[0][0]
    hidden_states = first.new_zeros(len(rows), length, first.shape[2])
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, (row, row_mask) in enumerate(rows):
        hidden_states[index, : row.shape[1]] = row[0]
        mask[index, : row.shape[1]] = row_mask[0]
    return States(hidden_states.to(device), mask.to(device))
