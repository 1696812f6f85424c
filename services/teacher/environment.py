"""What Ray's processes need in their environment so that students reach the replicas directly.

Imported before Ray is, so it imports nothing of Ray.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.teacher.config import ServiceConfig

__all__ = [
    "HOST_VARIABLE",
    "MAX_PORT_VARIABLE",
    "MIN_PORT_VARIABLE",
    "NUM_SPARE_PORTS",
    "missing_variables",
    "replica_ports",
    "serve_environment",
    "socket_address",
]

HOST_VARIABLE = "PRECEPTOR_HOST"
MIN_PORT_VARIABLE = "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT"
MAX_PORT_VARIABLE = "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT"

_INGRESS_VARIABLE = "RAY_SERVE_ENABLE_DIRECT_INGRESS"
_CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
# Without these nobody would find the replicas, or Serve's own proxies would take calls.
_REQUIRED = (_INGRESS_VARIABLE, MIN_PORT_VARIABLE, MAX_PORT_VARIABLE, HOST_VARIABLE, _CALLBACK_VARIABLE)

_FRAME_OVERHEAD_BYTES = 64 << 10
# For a replica that takes over while the old one drains, and for ports that something else has taken.
NUM_SPARE_PORTS = 8
_END_OF_PORTS = 65536
_MIN_DRAINING_S = 0.5


def socket_address(host: str, port: int) -> str:
    """Returns HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def replica_ports(config: ServiceConfig) -> range:
    """Returns the ports of which each replica of a node takes one; `config.port` is the directory's."""
    first = config.port + 1
    return range(first, min(first + config.max_replicas + NUM_SPARE_PORTS, _END_OF_PORTS))


def serve_environment(config: ServiceConfig) -> dict[str, str]:
    """Returns the environment variables that Ray's processes need, to be set before Ray starts."""
    ports = replica_ports(config)
    return {
        _INGRESS_VARIABLE: "1",
        MIN_PORT_VARIABLE: str(ports.start),
        MAX_PORT_VARIABLE: str(ports.stop),
        # Our code only reads and writes frames on its loop, so that may be the replica's: it saves two
        # hand-overs a frame, and gRPC's own flow control reaches the student instead of an unbounded queue.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        HOST_VARIABLE: config.host,
        _CALLBACK_VARIABLE: "services.teacher.ingress.restrict_listening",
        "RAY_SERVE_PORT_QUARANTINE_S": "0",
        # A stopping replica waits for its conversations; this long also for students on their way to it.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_MIN_DRAINING_S),
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(config.limits.max_frame_bytes + _FRAME_OVERHEAD_BYTES),
        # Only what replicas tell of their load, which autoscaling goes by; Serve's default is 10 s.
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        # A laptop's few cores are fewer than the small processes that training starts; don't warn of it.
        "RAY_worker_maximum_startup_concurrency": "16",
        # Ray gives its workers a low priority; a teacher must not starve beside its students on one machine.
        "RAY_worker_niceness": "0",
    }


def missing_variables() -> list[str]:
    """Returns what a teacher can't do without and this process's environment lacks."""
    return [name for name in _REQUIRED if not os.environ.get(name)]
