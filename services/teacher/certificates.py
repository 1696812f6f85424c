"""The TLS of a service's ports. Certificates are read anew when their files change; nobody is interrupted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import grpc

from services.teacher.tls_files import context_of, stamp_of

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
        self._seen = stamp_of(self._config)
        self.first = self._read()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the certificates if their files have changed; gRPC asks before each handshake.

        Files that do not belong together, as while they are being replaced, are left alone until they do.
        """
        try:
            stamp = stamp_of(self._config)
            if stamp == self._seen:
                return None
            certificates = self._read()
        except ValueError as error:
            logger.warning("the certificates stay what they were: %s", error)
            return None
        self._seen = stamp
        logger.info("the certificates were read anew")
        return certificates

    def _read(self) -> grpc.ServerCertificateConfiguration:
        config = self._config
        context_of(config)  # gRPC would take what does not belong together
        try:
            key, certificate = config.key.read_bytes(), config.certificate.read_bytes()
            authority = None if config.client_ca is None else config.client_ca.read_bytes()
        except OSError as error:
            raise ValueError(f"tls: {error.filename} can't be read: {error.strerror}") from None
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
