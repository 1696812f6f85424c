"""Whom a channel under TLS trusts: the certificates of a file, or those of this machine."""

from __future__ import annotations

import ssl
from pathlib import Path

__all__ = ["authorities_of", "system_authorities"]


def authorities_of(path: Path) -> bytes:
    """Reads certificates; with none in them gRPC would trust everybody that it trusts by default.

    Raises:
        OSError: the file can't be read.
        ValueError: it holds no certificates in PEM.
    """
    content = path.read_bytes()
    try:
        # What stands between certificates may be in any language.
        text = content.decode("ascii", "ignore")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ValueError, ssl.SSLError):
        raise ValueError(f"{path} holds no certificates in PEM") from None
    return content


def system_authorities() -> bytes | None:
    """Returns the certificates that this machine trusts; None, gRPC's own list, if it has no file of them.

    Raises:
        OSError: the file can't be read.
    """
    paths = ssl.get_default_verify_paths()
    for name in (paths.cafile, paths.openssl_cafile):
        if name and Path(name).is_file():
            return Path(name).read_bytes()
    return None
