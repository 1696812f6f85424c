"""The one address of a service: a small deployment that says where the replicas are.

Replicas report through Serve's handle, which reaches inside the cluster only, so nobody outside can name a
false one. Students ask over gRPC. It imports no torch: its process is small and starts quickly.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import grpc

from preceptor.v1 import teacher_pb2 as pb
from services.teacher.access import is_denied
from services.teacher.audit import write_audit_to
from services.teacher.certificates import add_port
from services.teacher.directory import Directory
from services.teacher.tenants import Gate

if TYPE_CHECKING:
    from pathlib import Path

    from services.teacher.config import TlsConfig
    from services.teacher.directory import Report

__all__ = ["DirectoryDeployment"]

logger = logging.getLogger(__name__)

_SERVICE = "preceptor.v1.TeacherService"


class DirectoryDeployment:
    """Answers FindReplicas at the service's address; whatever else is asked there is to be asked elsewhere.

    Args:
        address: HOST:PORT to listen on.
        tls: its certificates; None: students ask in the clear.
        tenants: the file of those who may ask; None: whoever comes.
        audit_log: where refusals are written down; None: in the log.
    """

    def __init__(
        self,
        address: str,
        tls: TlsConfig | None = None,
        tenants: Path | None = None,
        audit_log: Path | None = None,
    ) -> None:
        self._address = address
        self._tls = tls
        self._gate = None if tenants is None else Gate(tenants)
        write_audit_to(audit_log)
        self._directory = Directory()
        self._server: grpc.aio.Server | None = None
        self._starting = asyncio.Lock()
        self._has_warned = False

    async def report(self, report: Report) -> list[Report]:
        """Takes a replica's report and returns everybody's.

        The server starts with the first: a port that is still in use, by the directory that this one follows,
        is tried again with the next.
        """
        async with self._starting:
            if self._server is None:
                self._server = await self._start()
        return self._directory.report(report)

    async def addresses(self) -> list[str]:
        """Returns HOST:PORT of all replicas, for those inside the cluster."""
        return [replica.address for replica in self._directory.find(opens_conversation=False)]

    async def find_replicas(
        self,
        request: pb.FindReplicasRequest,
        context: grpc.aio.ServicerContext[pb.FindReplicasRequest, pb.FindReplicasResponse],
    ) -> pb.FindReplicasResponse:
        """See `TeacherService`; an empty list would say that conversations are held here."""
        if is_denied(self._gate, context):
            return pb.FindReplicasResponse()
        replicas = self._directory.find(opens_conversation=request.opens_conversation)
        if not replicas:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no replica is up")
        return pb.FindReplicasResponse(replicas=replicas)

    async def _start(self) -> grpc.aio.Server | None:
        """Returns a running server, or None if the port is in use."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
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
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        await server.start()
        return server


async def _refuse(_request: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "no teacher is at this address; FindReplicas says where")
