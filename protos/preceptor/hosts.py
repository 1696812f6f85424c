"""Hosts of HOST:PORT targets, and whether others reach them."""

from __future__ import annotations

import ipaddress

__all__ = ["host_of", "is_any", "is_loopback"]


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
