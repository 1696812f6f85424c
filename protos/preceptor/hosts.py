"""Hosts of HOST:PORT targets, and whether others reach them."""

from __future__ import annotations

import ipaddress

__all__ = ["host_of", "is_loopback"]


def host_of(target: str) -> str:
    """Returns the host of HOST:PORT, without the brackets of an IPv6 address."""
    return target.rpartition(":")[0].strip("[]")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
