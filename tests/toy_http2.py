"""A student that writes HTTP/2 by hand, so that it can stop in the middle or say what no client says."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

__all__ = ["PREFACE", "RawConnection"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_HEADERS = 4
_PATIENCE_S = 30.0
_LONGEST = 126  # of a string whose length is one byte of HPACK


class RawConnection:
    """A TCP connection to a server; nothing is sent by itself."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=_PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, content: bytes) -> None:
        self._socket.sendall(content)

    def greet(self) -> None:
        """Sends what a connection starts with."""
        self.send(PREFACE + _frame(_SETTINGS, 0, 0, b""))

    def converse(self, metadata: Mapping[str, bytes], stream: int = 1) -> None:
        """Starts a conversation."""
        fields = {
            ":method": b"POST",
            ":scheme": b"http",
            ":path": b"/preceptor.v1.TeacherService/Converse",
            ":authority": b"localhost",
            "te": b"trailers",
            "content-type": b"application/grpc",
            **metadata,
        }
        # Literals that no table is asked for: 0, then the lengths and bytes of name and value.
        block = b"".join(b"\0" + _text(name.encode()) + _text(value) for name, value in fields.items())
        self.send(_frame(_HEADERS, _END_HEADERS, stream, block))

    def say(self, content: bytes, *, of: int | None = None, stream: int = 1) -> None:
        """Sends a message, or the beginning of one of `of` bytes."""
        size = len(content) if of is None else of
        self.send(_frame(_DATA, 0, stream, struct.pack(">BI", 0, size) + content))

    def read_until(self, content: bytes) -> bytes:
        """Reads until something has come; returns all that was read."""
        got = b""
        while content not in got:
            more = self._socket.recv(1 << 16)
            assert more, f"the server closed the connection after {got!r}"
            got += more
        return got

    def read_all(self) -> bytes:
        """Reads until the server closes the connection."""
        got = b""
        try:
            while more := self._socket.recv(1 << 16):
                got += more
        except ConnectionResetError:
            pass
        return got


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def _text(content: bytes) -> bytes:
    assert len(content) <= _LONGEST
    return bytes([len(content)]) + content
