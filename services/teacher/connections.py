"""What a server bears of a connection: how long it waits for its other end, and how many streams it takes."""

from __future__ import annotations

__all__ = ["CONNECTION_OPTIONS"]

_PING_AFTER_MS = 30_000
_PING_TIMEOUT_MS = 20_000
# Students ask, too, once a second at most (gRPC sees to it) and not always evenly; gRPC ends the connection
# of one that asks more often than this.
_MIN_PING_INTERVAL_MS = 500
_HANDSHAKE_TIMEOUT_MS = 10_000
_MAX_STREAMS = 512  # of one connection; a student needs one or two, a proxy of many students more

CONNECTION_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", _PING_AFTER_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),  # of pings of its own, during which gRPC asks no more
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
    ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
    ("grpc.max_concurrent_streams", _MAX_STREAMS),
)
