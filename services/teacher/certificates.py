"""The TLS of a service's ports. Certificates are read anew when their files change; nobody is interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from services.teacher.tls_files import WatchedFiles, context_of

if TYPE_CHECKING:
    from services.teacher.config import TlsConfig

__all__ = ["CertificateFiles", "add_port"]


class CertificateFiles:
    """Reads a service's certificates; see `WatchedFiles`.

    Args:
        config: where they are.

    Raises:
        ValueError: they can't be read, or do not belong together.
    """

    def __init__(self, config: TlsConfig) -> None:
        self._files = WatchedFiles(config, _read, "the certificates")
        self.first = self._files.newest

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the certificates if their files have changed; gRPC asks before each handshake."""
        return self._files.newest if self._files.look() else None


def _read(config: TlsConfig) -> grpc.ServerCertificateConfiguration:
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
