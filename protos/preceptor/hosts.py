"""Addresses of teachers, the HOST:PORT targets in them, and whether others reach those."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

__all__ = ["Address", "host_of", "is_any", "is_loopback", "is_port", "parse_address"]

_MAX_PORT = 65535
_SCHEME, _SECURE_SCHEME = "preceptor://", "preceptors://"


@dataclass(frozen=True)
class Address:
    """Where a teacher is.

    Attributes:
        replicas: HOST:PORT of replicas or directories.
        is_secure: whether they are talked to under TLS.
    """

    replicas: tuple[str, ...]
    is_secure: bool


def parse_address(address: str) -> Address:
    """Splits `preceptor://host:port,host:port`, or `preceptors://` for TLS; without a scheme it is the first.

    Raises:
        ValueError: it has another form.
    """
    is_secure = address.startswith(_SECURE_SCHEME)
    rest = address.removeprefix(_SECURE_SCHEME if is_secure else _SCHEME)
    replicas = tuple(part.strip() for part in rest.split(","))
    for replica in replicas:
        host, separator, port = replica.rpartition(":")
        if not (separator and host and is_port(port)) or "/" in replica:
            raise ValueError(
                f"address: got {address!r}, expected preceptor://HOST:PORT[,HOST:PORT...], or preceptors://"
            )
    return Address(replicas, is_secure)


def is_port(text: str) -> bool:
    """Whether a text is the number of a port."""
    return text.isdecimal() and 0 < int(text) <= _MAX_PORT


def host_of(target: str) -> str:
    """Returns the host of HOST:PORT, without the brackets of an IPv6 address."""
    return target.rpartition(":")[0].strip("[]")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_any(host: str) -> bool:
    """Whether it stands for all addresses of the machine: to be listened on, not to be connected to."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
