"""The TLS of a service's ports. Certificates are read anew when their files change; nobody is interrupted."""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from services.teacher.config import TlsConfig

__all__ = ["CertificateFiles", "add_port"]

logger = logging.getLogger(__name__)


class CertificateFiles:
    """Reads a service's certificates.

    Args:
        config: where they are.

    Raises:
        ValueError: they can't be read, or do not belong together.
    """

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._seen = self._stamp()
        self.first = self._read()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the certificates if their files have changed; gRPC asks before each handshake.

        Files that do not belong together, as while they are being replaced, are left alone until they do.
        """
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return None
            certificates = self._read()
        except ValueError as error:
            logger.warning("the certificates stay what they were: %s", error)
            return None
        self._seen = stamp
        logger.info("the certificates were read anew")
        return certificates

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        files = (self._config.certificate, self._config.key, self._config.client_ca)
        try:
            stats = [file.stat() for file in files if file is not None]
        except OSError as error:
            raise ValueError(f"tls: {error.filename} can't be read: {error.strerror}") from None
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        config = self._config
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(config.certificate, config.key, password="")  # else it would ask
            if config.client_ca is not None:
                context.load_verify_locations(config.client_ca)
            key, certificate = config.key.read_bytes(), config.certificate.read_bytes()
            authority = None if config.client_ca is None else config.client_ca.read_bytes()
        except (OSError, ssl.SSLError) as error:  # an SSLError is an OSError; what it says names no secret
            raise ValueError(
                f"tls: got {config.certificate} and {config.key}, expected a certificate and its key in PEM "
                f"({error.strerror or error})"
            ) from None
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)


def add_port(server: grpc.aio.Server, address: str, tls: TlsConfig | None) -> int:
    """Has a server listen at HOST:PORT, with TLS if it is configured; returns the port.

    Raises:
        RuntimeError: the port is in use.
        ValueError: the certificates can't be read.
    """
    if tls is None:
        return server.add_insecure_port(address)
    files = CertificateFiles(tls)
    changed: Any = files.changed  # that it may return None is missing in the stubs
    credentials = grpc.dynamic_ssl_server_credentials(
        files.first, changed, require_client_authentication=tls.client_ca is not None
    )
    return server.add_secure_port(address, credentials)
