"""How a stream to a replica ends when nobody wanted it to."""

from __future__ import annotations

import grpc

__all__ = ["StreamLostError", "cause_of"]


class StreamLostError(Exception):
    """The stream broke.

    Attributes:
        code: the gRPC status it ended with, if it did.
    """

    def __init__(self, cause: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(cause)
        self.code = code


def cause_of(error: BaseException) -> tuple[str, grpc.StatusCode | None]:
    """Returns why a stream broke, in words, and the gRPC status it ended with, if it did."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}", error.code()
    return f"{type(error).__name__}: {error}", None
