"""`grpc.health.v1`, for probes: anyone who reaches a port may ask, and learns yes or no."""

from __future__ import annotations

from typing import Any, Protocol

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

__all__ = ["SERVICE_NAME", "SupportsCheck", "add_health_to_server", "answer_check"]

SERVICE_NAME = "preceptor.v1.TeacherService"
_KNOWN = ("", SERVICE_NAME)


class SupportsCheck(Protocol):
    """Answers `Check`."""

    async def Check(self, request: HealthCheckRequest, grpc_context: Any) -> HealthCheckResponse:  # noqa: N802
        """See `answer_check`."""
        ...


def add_health_to_server(servicer: SupportsCheck, server: grpc.aio.Server) -> None:
    """Has a server answer `Check`.

    `Watch` is left out, as the protocol allows: its streams would be held open by whoever wants to.
    """
    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(
            servicer.Check,
            request_deserializer=HealthCheckRequest.FromString,
            response_serializer=HealthCheckResponse.SerializeToString,
        )
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),)
    )


def answer_check(request: HealthCheckRequest, context: Any, *, is_serving: bool) -> HealthCheckResponse:
    """Returns whether conversations are taken; NOT_FOUND for services that are not here."""
    if request.service not in _KNOWN:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details(f"service: got another one, expected {SERVICE_NAME} or none")
        return HealthCheckResponse()
    status = HealthCheckResponse.SERVING if is_serving else HealthCheckResponse.NOT_SERVING
    return HealthCheckResponse(status=status)
