"""The files of a service's certificates: whether they changed, and whether they belong together.

Knows neither gRPC nor Ray.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.teacher.config import TlsConfig

__all__ = ["RenewedContext", "WatchedFiles", "context_of"]

logger = logging.getLogger(__name__)

ReadT = TypeVar("ReadT")
Stamp = tuple[tuple[int, int, int], ...]


class WatchedFiles(Generic[ReadT]):
    """What is made of a service's certificates, and made anew once their files have changed.

    Files that do not belong together, as while they are being replaced, are left alone until they do. Each
    connection has them looked at, so what is wrong is told once, and again when they have changed.

    Args:
        config: where they are.
        read: makes it of them.
        name: of the certificates, in the log.

    Attributes:
        newest: what was made of them.

    Raises:
        ValueError: they can't be read, or do not belong together.
    """

    def __init__(self, config: TlsConfig, read: Callable[[TlsConfig], ReadT], name: str) -> None:
        self._config = config
        self._read = read
        self._name = name
        self._seen = _stamp_of(config)
        self._told: tuple[Stamp | None, str] | None = None
        self.newest = read(config)

    def look(self) -> bool:
        """Whether `newest` is another one now."""
        stamp = None
        try:
            stamp = _stamp_of(self._config)
            if stamp == self._seen:
                self._told = None
                return False
            self.newest = self._read(self._config)
        except ValueError as error:
            if self._told != (stamp, str(error)):
                self._told = stamp, str(error)
                logger.warning("%s stay what they were: %s", self._name, error)
            return False
        self._seen, self._told = stamp, None
        logger.info("%s were read anew", self._name)
        return True


def _stamp_of(config: TlsConfig) -> Stamp:
    """Returns what changes when one of the files does.

    Raises:
        ValueError: one can't be read.
    """
    files = (config.certificate, config.key, config.client_ca)
    try:
        stats = [file.stat() for file in files if file is not None]
    except OSError as error:
        raise ValueError(f"tls: {error.filename} can't be read: {error.strerror}") from None
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)


def context_of(config: TlsConfig) -> ssl.SSLContext:
    """Returns what a server speaks TLS with.

    Raises:
        ValueError: the files can't be read, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.certificate, config.key, password="")  # else it would ask
        if config.client_ca is not None:
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:  # an SSLError is an OSError; what it says names no secret
        raise ValueError(
            f"tls: got {config.certificate} and {config.key}, expected a certificate and its key in PEM "
            f"({error.strerror or error})"
        ) from None
    return context


class RenewedContext(ssl.SSLContext):
    """A server's TLS on asyncio whose certificates are read anew when their files change; see `WatchedFiles`.

    Args:
        config: where the certificates are.

    Raises:
        ValueError: as in `context_of`.
    """

    def __new__(cls, config: TlsConfig) -> Self:  # noqa: ARG004 - what it is made of comes to `__init__`
        """Makes one, as the base class wants it."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, config: TlsConfig) -> None:
        self._files = WatchedFiles(config, context_of, "the console's certificates")

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 - as asyncio calls it
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Begins a connection with the certificates as they are now; asyncio asks for each."""
        self._files.look()
        return self._files.newest.wrap_bio(incoming, outgoing, server_side, server_hostname, session)
