"""The versions of its codec that a conversation holds."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from services.teacher.errors import (
    CodecConflictError,
    FieldError,
    LimitError,
    OverloadedError,
    UnknownCodecError,
)
from services.teacher.kept import Account

if TYPE_CHECKING:
    from preceptor.codec import TeacherCodec
    from preceptor.v1 import tensor_pb2 as tensors
    from preceptor.v1.teacher_pb2 import SetCodec

__all__ = ["CodecShelf", "num_bytes_of"]

# The newest version is in use; the one before it may still be named by frames that are on their way. Turns
# that are kept for their gradients hold their own version alive.
_MAX_VERSIONS = 2
# Far more than any codec has: two bytes on the wire are a tensor, which takes hundreds in memory.
_MAX_TENSORS = 64
_RETRY_S = 1.0


class CodecShelf:
    """Codec versions by number, and the parts of the one that is arriving.

    Args:
        max_bytes: the size of one version on the wire.
        account: counts the bytes with those of others; None: nobody does.
    """

    def __init__(self, max_bytes: int, account: Account | None = None) -> None:
        self._max_bytes = max_bytes
        self._account = account or Account()
        self._versions: OrderedDict[int, tuple[TeacherCodec, bytes]] = OrderedDict()
        self._arriving = 0
        self._parts: list[tensors.NamedTensor] = []
        self._num_bytes = 0

    def add_part(self, frame: SetCodec) -> list[tensors.NamedTensor] | None:
        """Takes a part in; returns all tensors of the version once it is complete and new.

        Raises:
            FieldError: the version is 0.
            LimitError: the version is too large, or in too many tensors.
            OverloadedError: the tenant keeps more than its part of what the replica can.
        """
        if frame.version == 0:
            raise FieldError("version: got 0, expected a positive number")
        if self._account.is_over:
            self._start(0)
            raise OverloadedError("codec: got one more, expected none while so much is kept", _RETRY_S)
        if frame.version != self._arriving:
            self._start(frame.version)
        self._num_bytes += frame.ByteSize()
        self._account.add(frame.ByteSize())
        num_tensors = len(self._parts) + len(frame.tensors)
        for what, got, limit in (
            ("bytes", self._num_bytes, self._max_bytes),
            ("tensors", num_tensors, _MAX_TENSORS),
        ):
            if got > limit:
                self._start(0)
                raise LimitError(f"codec {what}: got {got}, expected at most {limit}")
        self._parts.extend(frame.tensors)
        if not frame.complete:
            return None
        parts = self._parts
        self._start(0)
        return None if self._is_known(frame.version, _digest(parts)) else parts

    def _start(self, version: int) -> None:
        """Drops what has arrived, and takes in parts of another version; 0: of none."""
        self._account.add(-self._num_bytes)
        self._arriving, self._parts, self._num_bytes = version, [], 0

    def _is_known(self, version: int, digest: bytes) -> bool:
        known = self._versions.get(version)
        if known is not None and known[1] != digest:
            raise CodecConflictError(
                f"version: got {version} again with other content, expected a new number"
            )
        return known is not None

    def put(self, version: int, codec: TeacherCodec, parts: list[tensors.NamedTensor]) -> None:
        """Holds a version built from `parts`, dropping the oldest ones."""
        self._versions[version] = (codec, _digest(parts))
        self._account.add(num_bytes_of(codec))
        while len(self._versions) > _MAX_VERSIONS:
            self._drop_oldest()

    def clear(self) -> None:
        """Drops everything."""
        self._start(0)
        while self._versions:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (codec, _) = self._versions.popitem(last=False)
        self._account.add(-num_bytes_of(codec))

    def get(self, version: int) -> TeacherCodec:
        """Returns a version.

        Raises:
            UnknownCodecError: it is not held.
        """
        try:
            return self._versions[version][0]
        except KeyError:
            held = list(self._versions) or "none"
            raise UnknownCodecError(
                f"codec_version: got {version}, held are {held}; send it, then the turn again"
            ) from None


def num_bytes_of(codec: TeacherCodec) -> int:
    """Returns the bytes of a codec's parameters."""
    return sum(parameter.nbytes for parameter in codec.parameters())


def _digest(parts: list[tensors.NamedTensor]) -> bytes:
    digest = hashlib.sha256()
    for part in sorted(parts, key=lambda part: part.name):
        digest.update(part.SerializeToString(deterministic=True))
    return digest.digest()
