"""The one address of a service: a small deployment that says where the replicas are.

Replicas report through Serve's handle, which reaches inside the cluster only, so nobody outside can name a
false one. Students ask over gRPC. It imports no torch: its process is small and starts quickly.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc

from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.status_pb2 import GetStatusResponse
from preceptor.v1.status_pb2_grpc import add_StatusServiceServicer_to_server
from services.teacher.access import answer_status, is_blind, is_denied
from services.teacher.audit import write_audit_to
from services.teacher.certificates import add_port
from services.teacher.connections import CONNECTION_OPTIONS
from services.teacher.directory import Directory
from services.teacher.environment import socket_address
from services.teacher.gate import gate_of
from services.teacher.health import SERVICE_NAME, add_health_to_server, answer_check
from services.teacher.logs import write_logs_of
from services.teacher.status import StatusBoard

if TYPE_CHECKING:
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    from preceptor.v1.status_pb2 import GetStatusRequest
    from services.teacher.config import ServiceConfig
    from services.teacher.console_server import ConsoleServer
    from services.teacher.directory import Report
    from services.teacher.gate import Gate

__all__ = ["DirectoryDeployment"]

logger = logging.getLogger(__name__)


class DirectoryDeployment:
    """Answers FindReplicas and GetStatus at the service's address; all else is to be asked elsewhere.

    Args:
        config: of the service.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self._address = socket_address(config.host, config.port)
        self._tls = config.tls
        self._gate = gate_of(config)
        write_audit_to(config.audit_log)
        write_logs_of(config, "directory")
        self._directory = Directory()
        self._board = StatusBoard(config.name)
        self._server: grpc.aio.Server | None = None
        self._console = None if config.console is None else _console_of(config, self._board, self._gate)
        self._starting = asyncio.Lock()
        self._has_warned = self._has_failed = False

    async def report(self, report: Report) -> list[Report]:
        """Takes a replica's report and returns everybody's.

        The server starts with the first: a port that is still in use, by the directory that this one follows,
        is tried again with the next.
        """
        async with self._starting:
            if self._server is None:
                self._server = await self._start()
            if self._console is not None:
                await self._console.keep_up()
        self._hear(report)
        return self._directory.report(replace(report, status=b""))  # replicas need not know it of each other

    async def addresses(self) -> list[str]:
        """Returns HOST:PORT of all replicas, for those inside the cluster."""
        return [replica.address for replica in self._directory.find(opens_conversation=False)]

    async def find_replicas(
        self,
        request: pb.FindReplicasRequest,
        context: grpc.aio.ServicerContext[pb.FindReplicasRequest, pb.FindReplicasResponse],
    ) -> pb.FindReplicasResponse:
        """See `TeacherService`; an empty list would say that conversations are held here."""
        if await is_denied(self._gate, context, self._board):
            return pb.FindReplicasResponse()
        replicas = self._directory.find(opens_conversation=request.opens_conversation)
        if not replicas:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no replica is up")
        return pb.FindReplicasResponse(replicas=replicas)

    async def GetStatus(  # noqa: N802
        self, request: GetStatusRequest, context: Any
    ) -> GetStatusResponse:
        """Says how the service is, as far as the caller may see it."""
        return await answer_status(request, self._gate, context, self._board)

    async def Check(self, request: HealthCheckRequest, grpc_context: Any) -> HealthCheckResponse:  # noqa: N802
        """Says whether a replica is up, and students are let in; see `health`."""
        replicas = self._directory.find(opens_conversation=False)
        is_serving = bool(replicas) and not await is_blind(self._gate)
        return answer_check(request, grpc_context, is_serving=is_serving)

    def _hear(self, report: Report) -> None:
        if not report.status:
            return
        try:
            status = GetStatusResponse.FromString(report.status)
            self._board.hear(status, is_leaving=report.draining)
        except Exception:  # whatever it is, students find the replica
            if not self._has_failed:
                logger.exception("%s: what it tells of itself is not understood", report.address)
            self._has_failed = True

    async def _start(self) -> grpc.aio.Server | None:
        """Returns a running server, or None if the port is in use."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *CONNECTION_OPTIONS])
        try:
            add_port(server, self._address, self._tls)
        except RuntimeError as error:
            if not self._has_warned:
                logger.warning("nobody can ask for replicas yet: %s", error)
            self._has_warned = True
            return None
        handlers = {
            "FindReplicas": grpc.unary_unary_rpc_method_handler(
                self.find_replicas,
                request_deserializer=pb.FindReplicasRequest.FromString,
                response_serializer=pb.FindReplicasResponse.SerializeToString,
            ),
            # UNIMPLEMENTED would tell a student that came while no replica was up that none ever will be.
            "DescribeTeacher": grpc.unary_unary_rpc_method_handler(_refuse),
            "Converse": grpc.stream_stream_rpc_method_handler(_refuse),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
        add_StatusServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        add_health_to_server(self, server)
        await server.start()
        return server


def _console_of(config: ServiceConfig, board: StatusBoard, gate: Gate | None) -> ConsoleServer:
    from services.teacher.console_server import ConsoleServer  # noqa: PLC0415 - where there is one

    return ConsoleServer(config, board, gate)


async def _refuse(_request: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "no teacher is at this address; FindReplicas says where")
