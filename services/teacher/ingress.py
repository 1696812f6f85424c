"""Where Serve's gRPC servers listen, and what Serve does not tell a replica.

Serve binds `[::]` in replicas and proxies alike and has no option for it, and with direct ingress it always
starts a proxy on the head node. Serve calls `restrict_listening` in each of those processes before its
servers start (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH), and looks the binding function up when they do: so
replicas listen on the configured host, and proxies on no gRPC port at all.

Serve gives a replica its port after it was constructed, and has no hook before it stops it: a stop begins
with `Replica.perform_graceful_shutdown`, which waits for open requests. `watch_replica` tells of both.
Tests hold us to all of it with each Ray release.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.serve._private import default_impl, grpc_util
from ray.serve._private.replica import Replica

from services.teacher.certificates import add_port
from services.teacher.connections import CONNECTION_OPTIONS
from services.teacher.environment import (
    HOST_VARIABLE,
    MAX_PORT_VARIABLE,
    MIN_PORT_VARIABLE,
    socket_address,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.teacher.config import ServiceConfig

__all__ = ["restrict_listening", "watch_replica"]

logger = logging.getLogger(__name__)


@dataclass
class _Watcher:
    """Whom this process's replica is told of."""

    on_listening: Callable[[int], None] | None = None
    on_stopping: Callable[[], None] | None = None
    config: ServiceConfig | None = None


_watcher = _Watcher()
_SERVER_OPTIONS = list(grpc_util.DEFAULT_GRPC_SERVER_OPTIONS)
_perform_graceful_shutdown = Replica.perform_graceful_shutdown


def restrict_listening() -> list[Any]:
    """Makes this process's Serve bind replicas to the configured host and proxies to nothing.

    Replicas also look after their connections, which Serve has no option for.

    Returns:
        No HTTP middlewares, which is what Serve calls this for.
    """
    default_impl.add_grpc_address = _add_grpc_address
    grpc_util.DEFAULT_GRPC_SERVER_OPTIONS = [*_SERVER_OPTIONS, *CONNECTION_OPTIONS]
    return []


def watch_replica(
    on_listening: Callable[[int], None], on_stopping: Callable[[], None], config: ServiceConfig
) -> None:
    """Makes Serve tell of the replica in this process, on its event loop, and listen as is configured.

    Args:
        on_listening: called with the port of its gRPC server, just before that is started.
        on_stopping: called when Serve begins to stop it, while it still serves.
        config: says where it listens, which has been checked, and with what certificates.
    """
    _watcher.on_listening, _watcher.on_stopping, _watcher.config = on_listening, on_stopping, config
    Replica.perform_graceful_shutdown = _tell_and_shut_down


async def _tell_and_shut_down(replica: Any) -> None:
    if _watcher.on_stopping is not None:
        try:
            _watcher.on_stopping()
        except Exception:  # whatever it is, Serve's own shutdown must come
            logger.exception("the students were not told that this replica goes")
    await _perform_graceful_shutdown(replica)


def _add_grpc_address(server: Any, address: str) -> None:
    config = _watcher.config
    host = os.environ.get(HOST_VARIABLE, "127.0.0.1") if config is None else config.host
    port = int(address.rpartition(":")[2])
    first, end = int(os.environ[MIN_PORT_VARIABLE]), int(os.environ[MAX_PORT_VARIABLE])
    if first <= port < end:
        add_port(server, socket_address(host, port), None if config is None else config.tls)
        if _watcher.on_listening is not None:
            _watcher.on_listening(port)
