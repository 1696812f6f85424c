"""What the observation cache keeps on disk: an LMDB database of safetensors, bounded, never pickle.

Several processes, the replicas of one node, may share a folder. A thread of its own writes, many values a
transaction, so that nobody waits for the disk; what waits to be written can be read already. A cache may
forget: a value that is damaged, or comes faster than the disk takes it, is missing, and a disk that fails
turns the tier off.

The folder must be on a local file system, since LMDB maps its file into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import struct
import threading
from typing import TYPE_CHECKING

import lmdb
from safetensors import SafetensorError
from safetensors.torch import load, save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["DiskTier"]

logger = logging.getLogger(__name__)

_MAX_KEY_BYTES = 511  # LMDB's own limit
_MAX_WAITING_BYTES = 64 * 2**20
_MAX_READERS = 512
_CHECKSUM_BYTES = 16
_NUMBER = struct.Struct(">Q")  # big-endian, so that LMDB's order of bytes is that of numbers
# Of the bound. Pages that a transaction frees can be used two transactions later only, and a large value
# needs pages in a row: a database that used all of its file could not be written to.
_FILL = 3 / 4
_TRANSACTION = 1 / 16


class DiskTier:
    """Values by key on disk; the oldest written go first. May be used by several threads.

    Args:
        folder: made if it is missing; nothing else may be in it.
        max_bytes: bytes of the file, at least 2**20; about three quarters of them are values. A file that was
            made with a larger bound stays as large.

    Raises:
        OSError: the folder can't be used.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_used_bytes = int(max_bytes * _FILL)
        self._max_transaction_bytes = int(max_bytes * _TRANSACTION)
        self._env, self._values, self._order = _open(folder, max_bytes)
        self._waiting: dict[bytes, tuple[Tensor, ...]] = {}
        self._num_waiting_bytes = 0
        self._damaged: set[bytes] = set()
        self._is_off = False
        self._is_closed = False
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._write_all, name="disk-tier", daemon=True)
        self._writer.start()

    def get(self, key: bytes) -> tuple[Tensor, ...] | None:
        """Returns a value, which must not be written to, or None."""
        key = _short(key)
        with self._changed:
            if key in self._waiting:
                return self._waiting[key]
            if self._is_off or self._is_closed:
                return None
            try:
                with self._env.begin(self._values) as transaction:
                    record = transaction.get(key)
            except lmdb.Error as error:
                self._turn_off(error)
                return None
        value = None if record is None else _unpack(record)
        if value is None and record is not None:
            with self._changed:
                self._damaged.add(key)
                self._changed.notify_all()
        return value

    def put(self, key: bytes, value: tuple[Tensor, ...]) -> None:
        """Keeps a value, soon; not one that is there already, is too large or comes too fast.

        Args:
            key: stands for this value for good.
            value: tensors on the CPU, each with contiguous storage of its own that is not written to later.
        """
        key, num_bytes = _short(key), _num_bytes(value)
        with self._changed:
            is_late = self._num_waiting_bytes + num_bytes > _MAX_WAITING_BYTES
            if key in self._waiting or self._is_off or self._is_closed or is_late:
                return
            self._waiting[key] = value
            self._num_waiting_bytes += num_bytes
            self._changed.notify_all()

    def close(self) -> None:
        """Writes what waits and closes the file."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._writer.join()
        with self._changed:
            self._env.close()

    def _write_all(self) -> None:
        """The writer's thread."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._waiting or self._damaged or self._is_closed or self._is_off
                )
                if self._is_off or not (self._waiting or self._damaged):
                    return
                batch, damaged = self._next_batch(), frozenset(self._damaged)
            try:
                self._write(batch, damaged)
            except Exception as error:  # noqa: BLE001 - the cache is a help, never a cause of failure
                with self._changed:
                    self._turn_off(error)
                return
            with self._changed:
                self._damaged -= damaged
                for key, value in batch.items():
                    if self._waiting.pop(key, None) is not None:
                        self._num_waiting_bytes -= _num_bytes(value)

    def _next_batch(self) -> dict[bytes, tuple[Tensor, ...]]:
        """Returns what the next transaction shall write, at least one value if one waits."""
        batch: dict[bytes, tuple[Tensor, ...]] = {}
        num_bytes = 0
        for key, value in self._waiting.items():
            num_bytes += _num_bytes(value)
            if batch and num_bytes > self._max_transaction_bytes:
                break
            batch[key] = value
        return batch

    def _write(self, batch: Mapping[bytes, tuple[Tensor, ...]], damaged: frozenset[bytes]) -> None:
        """Writes in one transaction; where pages in a row are missing, once more after making room."""
        records = {key: record for key, value in batch.items() if (record := self._pack(value))}
        for max_used_bytes in (self._max_used_bytes, self._max_used_bytes // 2):
            with contextlib.suppress(lmdb.MapFullError), self._env.begin(write=True) as transaction:
                for key in damaged:
                    self._delete(transaction, key)
                for key, record in records.items():
                    self._insert(transaction, key, record, max_used_bytes)
                return
            self._env.reader_check()  # a reader that was killed would keep pages from being used again
            with contextlib.suppress(lmdb.MapFullError), self._env.begin(write=True) as transaction:
                self._make_room(transaction, self._max_used_bytes // 2)

    def _pack(self, value: tuple[Tensor, ...]) -> bytes | None:
        """Returns a value's record without its number, or None if it is too large."""
        content = save({str(place): tensor for place, tensor in enumerate(value)})
        record = hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).digest() + content
        return record if len(record) <= self._max_transaction_bytes else None

    def _insert(self, transaction: lmdb.Transaction, key: bytes, record: bytes, max_used_bytes: int) -> None:
        if transaction.get(key, db=self._values) is not None:
            return
        self._make_room(transaction, max_used_bytes - len(record))
        last = transaction.cursor(self._order)
        number = _NUMBER.pack(_NUMBER.unpack(last.key())[0] + 1 if last.last() else 0)
        transaction.put(number, key, db=self._order, append=True)
        transaction.put(key, number + record, db=self._values)

    def _delete(self, transaction: lmdb.Transaction, key: bytes) -> None:
        """Deletes a damaged value; its number may be damaged too."""
        record = transaction.pop(key, db=self._values)
        if record is not None and transaction.get(record[: _NUMBER.size], db=self._order) == key:
            transaction.delete(record[: _NUMBER.size], db=self._order)

    def _make_room(self, transaction: lmdb.Transaction, max_used_bytes: int) -> None:
        """Deletes the oldest values until no more than some bytes are in use."""
        oldest = transaction.cursor(self._order)
        while self._num_used_bytes(transaction) > max_used_bytes and oldest.first():
            transaction.delete(oldest.value(), db=self._values)
            oldest.delete()

    def _num_used_bytes(self, transaction: lmdb.Transaction) -> int:
        total = 0
        for database in (self._values, self._order):
            facts = transaction.stat(database)
            pages = facts["branch_pages"] + facts["leaf_pages"] + facts["overflow_pages"]
            total += pages * facts["psize"]
        return total

    def _turn_off(self, error: Exception) -> None:
        """Goes on without the disk; the lock is held."""
        if not self._is_off:
            logger.warning("cache.folder: going on without %s: %s", self._folder, error)
        self._is_off = True
        self._waiting.clear()
        self._num_waiting_bytes = 0
        self._changed.notify_all()


def _open(folder: Path, max_bytes: int) -> tuple[lmdb.Environment, lmdb._Database, lmdb._Database]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        env = lmdb.open(str(folder), map_size=max_bytes, max_dbs=2, max_readers=_MAX_READERS, readahead=False)
        env.reader_check()
        return env, env.open_db(b"values"), env.open_db(b"order")
    except (lmdb.Error, OSError) as error:
        raise OSError(
            f"cache.folder: got {folder}, expected a folder of the cache on a local disk: {error}"
        ) from None


def _short(key: bytes) -> bytes:
    """Returns a key that LMDB takes."""
    return key if 0 < len(key) <= _MAX_KEY_BYTES else hashlib.blake2b(key).digest()


def _unpack(record: bytes) -> tuple[Tensor, ...] | None:
    """Returns a record's value, or None if it is damaged."""
    start = _NUMBER.size + _CHECKSUM_BYTES
    checksum, content = record[_NUMBER.size : start], record[start:]
    if hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).digest() != checksum:
        return None
    try:
        tensors = load(content)
    except SafetensorError:
        return None
    return tuple(tensors[str(place)] for place in range(len(tensors)))


def _num_bytes(value: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in value)
