"""How a server finds out that a connection has nobody at its other end any more."""

from __future__ import annotations

__all__ = ["KEEPALIVE"]

_PING_AFTER_MS = 30_000
_PING_TIMEOUT_MS = 20_000
# A student may ask twice as often as we do; gRPC would otherwise end its connection after a few pings.
_MIN_PING_INTERVAL_MS = _PING_AFTER_MS // 2

KEEPALIVE: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", _PING_AFTER_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
)
