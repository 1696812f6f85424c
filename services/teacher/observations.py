"""The observation cache: what the frozen teacher has once read is kept, row by row, under a byte budget.

An entry is a small tuple of tensors of one input row, for example its hidden states at the talking layer and
their mask. Its key says whose it is, which teacher read it, what part of the reading it is and what was read,
by content. A frozen teacher gives the same answer to the same row, so an entry is never out of date.

Knows neither models nor turns.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from services.teacher.disk_tier import DiskTier

__all__ = ["ENTRY_BYTES", "ObservationCache", "entry_key", "num_entry_bytes", "row_digests", "valid_lengths"]

_Value: TypeAlias = "tuple[Tensor, ...]"

ENTRY_BYTES = 512  # what Python and torch need for an entry beside its numbers, about
_DIGEST_BYTES = 20
_KEY_BYTES = 32
_MASK = "attention_mask"


class ObservationCache:
    """Values by key; the least recently used go first. May be used by several threads.

    Args:
        max_bytes: bytes kept in memory, those of the tensors and `ENTRY_BYTES` an entry.
        disk: keeps what memory has no room for, and outlives the process; None: nothing does.

    Attributes:
        num_hits: values that were found, in memory or on disk.
        num_disk_hits: those of them that were found on disk only.
        num_misses: values that were not found.
    """

    def __init__(self, max_bytes: int, disk: DiskTier | None = None) -> None:
        self.num_hits = 0
        self.num_disk_hits = 0
        self.num_misses = 0
        self._max_bytes = max_bytes
        self._disk = disk
        self._entries: OrderedDict[bytes, _Value] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> tuple[Tensor, ...] | None:
        """Returns a value, which must not be written to, or None. One found on disk moves to memory."""
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
                self.num_hits += 1
                return value
        value = None if self._disk is None else self._disk.get(key)  # slow, so without the lock
        with self._lock:
            if value is None:
                self.num_misses += 1
            else:
                self.num_hits += 1
                self.num_disk_hits += 1
                self._keep(key, value)
        return value

    def put(self, key: bytes, value: tuple[Tensor, ...]) -> None:
        """Keeps a copy of a value in memory and on disk, unless it is there or never fits.

        Args:
            key: stands for this value for good.
            value: tensors on the CPU; views of a batch are fine.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return
        if self._disk is None and num_entry_bytes(value) > self._max_bytes:
            return
        # A view would keep its whole batch in memory, unseen by the budget.
        own = tuple(tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in value)
        if self._disk is not None:
            self._disk.put(key, own)
        with self._lock:
            self._keep(key, own)

    def close(self) -> None:
        """Closes the disk tier, after writing what waits; what is in memory stays."""
        if self._disk is not None:
            self._disk.close()

    def _keep(self, key: bytes, value: _Value) -> None:
        """Puts a value in memory; the lock is held."""
        num_bytes = num_entry_bytes(value)
        if num_bytes > self._max_bytes or key in self._entries:
            return
        while self._num_bytes + num_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._num_bytes -= num_entry_bytes(oldest)
        self._entries[key] = value
        self._num_bytes += num_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes kept in memory now."""
        return self._num_bytes

    def __len__(self) -> int:
        """Returns the number of values in memory."""
        return len(self._entries)


def num_entry_bytes(value: tuple[Tensor, ...]) -> int:
    """Returns what a value takes of the budget, in bytes."""
    return ENTRY_BYTES + sum(tensor.nbytes for tensor in value)


def entry_key(scope: str, fingerprint: str, part: str, digest: bytes) -> bytes:
    """Returns the key of an entry, 32 bytes.

    Args:
        scope: who may see it, for example a tenant.
        fingerprint: of the teacher.
        part: which part of the reading, for example "lower:3", "pooled" or "logits".
        digest: of the row, see `row_digests`.
    """
    # Each part comes with its length, so that no two lists of parts are the same bytes.
    parts = (scope.encode(), fingerprint.encode(), part.encode(), digest)
    content = b"".join(struct.pack("<Q", len(each)) + each for each in parts)
    return hashlib.blake2b(content, digest_size=_KEY_BYTES).digest()


def row_digests(inputs: Mapping[str, Tensor], *, cut_padding: bool = True) -> list[bytes]:
    """Returns a digest (BLAKE2b) of each row: of every input's name, type, row shape and bytes.

    Args:
        inputs: tensors by name on the CPU, [B, ...] each.
        cut_padding: whether a row ends with its last valid position, so that padding that other rows of its
            batch made necessary does not count. That holds where `attention_mask`, [B, L], bool, is an input,
            for all tensors [B, L, ...]. Not for a teacher to which such a mask does not mean padding.
    """
    if not inputs:
        return []
    names = sorted(inputs)
    mask = inputs.get(_MASK) if cut_padding else None
    if mask is None or mask.ndim != 2 or mask.dtype is not torch.bool:  # noqa: PLR2004 - rank
        columns = [_whole_rows(name, inputs[name]) for name in names]
    else:
        lengths = valid_lengths(mask)
        columns = [
            _cut_rows(name, inputs[name], lengths)
            if inputs[name].shape[1:2] == mask.shape[1:]
            else _whole_rows(name, inputs[name])
            for name in names
        ]
    return [
        hashlib.blake2b(b"".join(parts), digest_size=_DIGEST_BYTES).digest()
        for parts in zip(*columns, strict=True)
    ]


def valid_lengths(mask: Tensor) -> list[int]:
    """Returns one more than each row's last valid position, 0 if there is none."""
    positions = torch.arange(1, mask.shape[1] + 1)
    lengths: list[int] = (mask * positions).amax(1).tolist() if mask.shape[1] else [0] * len(mask)
    return lengths


def _whole_rows(name: str, tensor: Tensor) -> Iterator[bytes]:
    """Yields what is digested of each row."""
    head = _head(name, tensor, list(tensor.shape[1:]))
    data, row_bytes = _bytes(tensor)
    for start in range(0, row_bytes * len(tensor), row_bytes) if row_bytes else [0] * len(tensor):
        yield head + data[start : start + row_bytes]


def _cut_rows(name: str, tensor: Tensor, lengths: list[int]) -> Iterator[bytes]:
    """Yields what is digested of each row, up to its length."""
    sizes = list(tensor.shape[2:])
    heads = {length: _head(name, tensor, [length, *sizes]) for length in set(lengths)}
    data, row_bytes = _bytes(tensor)
    position_bytes = row_bytes // max(tensor.shape[1], 1)
    for row, length in enumerate(lengths):
        start = row * row_bytes
        yield heads[length] + data[start : start + length * position_bytes]


def _head(name: str, tensor: Tensor, sizes: list[int]) -> bytes:
    head = f"{name!r} {tensor.dtype} {sizes}".encode()
    return struct.pack("<Q", len(head)) + head


def _bytes(tensor: Tensor) -> tuple[bytes, int]:
    """Returns a tensor's bytes, row-major, and how many a row has."""
    rows = tensor.detach().contiguous()
    # Not reshape(-1): a single element keeps whatever stride it had, and then can't be viewed as bytes.
    flat = rows.as_strided((rows.numel(),), (1,))
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return data, len(data) // max(len(tensor), 1)
