"""Where Serve's gRPC servers listen.

Serve binds `[::]` in replicas and proxies alike and has no option for it, and with direct ingress it always
starts a proxy on the head node. Serve calls `restrict_listening` in each of those processes before its
servers start (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH), and looks the binding function up when they do: so
replicas listen on the configured host, and proxies on no gRPC port at all. A test holds us to it with each
Ray release.
"""

from __future__ import annotations

import os
from typing import Any

from ray.serve._private import default_impl

from services.teacher.environment import HOST_VARIABLE, MAX_PORT_VARIABLE, MIN_PORT_VARIABLE

__all__ = ["restrict_listening"]


def restrict_listening() -> list[Any]:
    """Makes this process's Serve bind replicas to the configured host and proxies to nothing.

    Returns:
        No HTTP middlewares, which is what Serve calls this for.
    """
    default_impl.add_grpc_address = _add_grpc_address
    return []


def _add_grpc_address(server: Any, address: str) -> None:
    host = os.environ.get(HOST_VARIABLE, "127.0.0.1")
    port = int(address.rpartition(":")[2])
    first, end = int(os.environ[MIN_PORT_VARIABLE]), int(os.environ[MAX_PORT_VARIABLE])
    if first <= port < end:
        shown = f"[{host}]" if ":" in host else host
        server.add_insecure_port(f"{shown}:{port}")
