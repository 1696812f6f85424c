"""The files of a service's certificates: whether they changed, and whether they belong together.

Knows neither gRPC nor Ray.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from services.teacher.config import TlsConfig

__all__ = ["RenewedContext", "Stamp", "context_of", "stamp_of"]

logger = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


def stamp_of(config: TlsConfig) -> Stamp:
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
    """A server's TLS on asyncio whose certificates are read anew when their files change.

    Files that do not belong together, as while they are being replaced, are left alone until they do.

    Args:
        config: where the certificates are.

    Raises:
        ValueError: as in `context_of`.
    """

    def __new__(cls, config: TlsConfig) -> Self:  # noqa: ARG004 - what it is made of comes to `__init__`
        """Makes one, as the base class wants it."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._seen = stamp_of(config)
        self._newest = context_of(config)

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 - as asyncio calls it
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Begins a connection with the certificates as they are now; asyncio asks for each."""
        self._look()
        return self._newest.wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def _look(self) -> None:
        try:
            stamp = stamp_of(self._config)
            if stamp == self._seen:
                return
            self._newest = context_of(self._config)
        except ValueError as error:
            logger.warning("the console's certificates stay what they were: %s", error)
            return
        self._seen = stamp
        logger.info("the console's certificates were read anew")
