"""A client's side of TLS."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from student_client.errors import AccessError

if TYPE_CHECKING:
    from student_client.options import TlsOptions

__all__ = ["credentials_of"]


def credentials_of(options: TlsOptions) -> grpc.ChannelCredentials:
    """Reads what a channel needs to know the teacher and to be known by it.

    Raises:
        AccessError: a file can't be read.
    """
    try:
        authorities = _system_authorities() if options.ca_file is None else options.ca_file.read_bytes()
        key = None if options.key_file is None else options.key_file.read_bytes()
        chain = None if options.certificate_file is None else options.certificate_file.read_bytes()
    except OSError as error:
        raise AccessError(f"options.tls: {error.filename} can't be read: {error.strerror}") from None
    return grpc.ssl_channel_credentials(authorities, key, chain)


def _system_authorities() -> bytes | None:
    """Returns the certificates that this machine trusts; None, gRPC's own list, if it has no file of them."""
    paths = ssl.get_default_verify_paths()
    for name in (paths.cafile, paths.openssl_cafile):
        if name and Path(name).is_file():
            return Path(name).read_bytes()
    return None
