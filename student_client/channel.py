"""Channels to replicas and directories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from student_client.credentials import credentials_of

if TYPE_CHECKING:
    from student_client.options import ClientOptions

__all__ = ["open_channel", "with_hint"]

_FRAME_OVERHEAD_BYTES = 64 << 10


def open_channel(target: str, options: ClientOptions) -> grpc.aio.Channel:
    """Returns a channel of its own to one replica; a shared one would wait out gRPC's reconnect back-off."""
    limit = options.max_frame_bytes + _FRAME_OVERHEAD_BYTES
    keepalive_ms = max(round(options.keepalive_s * 1000), 1)
    settings: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", limit),
        ("grpc.max_receive_message_length", limit),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        # A network that stalls tells nobody; only a question that is not answered shows it.
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.http2.ping_timeout_ms", keepalive_ms),  # of pings of its own, during which gRPC asks no more
        ("grpc.http2.max_pings_without_data", 0),
    ]
    if options.tls is None:
        return grpc.aio.insecure_channel(target, options=settings)
    if options.tls.server_name is not None:
        settings.append(("grpc.ssl_target_name_override", options.tls.server_name))
    return grpc.aio.secure_channel(target, credentials_of(options.tls), options=settings)


def with_hint(problem: str, options: ClientOptions) -> str:
    """Returns what gRPC says of a failed connection and, if it looks so, which option is wrong."""
    if options.tls is not None and "WRONG_VERSION_NUMBER" in problem:
        return f"{problem}; no TLS is spoken there, expected preceptor://"
    if options.tls is None and "failed to connect" in problem and "Socket closed" in problem:
        return f"{problem}; does it speak TLS, at preceptors://?"
    if "Hostname Verification Check failed" in problem:
        return f"{problem}; the name in the certificate is options.tls.server_name (--server-name)"
    if "CERTIFICATE_VERIFY_FAILED" in problem:
        return f"{problem}; expected a certificate of an authority in options.tls.ca_file (--ca), not expired"
    return problem
