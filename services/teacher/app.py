"""The teacher as a Ray Serve application; the only module that knows Ray Serve.

Students reach a replica's own gRPC server (direct ingress): Serve's proxies would cost more than the
teacher does for small messages, so they serve no gRPC (see `ingress`). What direct ingress needs of the
environment is in `environment` and must be set in every Ray process before Ray starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from ray import serve

from services.teacher.config import ServiceConfig  # noqa: TC001 - Ray reads the annotation at run time
from services.teacher.engine import Engine, FifoQueue
from services.teacher.families import load_teacher
from services.teacher.ingress import restrict_listening
from services.teacher.servicer import TeacherServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ray.serve import Application

    from preceptor.v1 import teacher_pb2 as pb

__all__ = ["APP_NAME", "SERVICER_FUNCTIONS", "TeacherDeployment", "build_app", "load_engine"]

APP_NAME = "preceptor"
SERVICER_FUNCTIONS = ["preceptor.v1.teacher_pb2_grpc.add_TeacherServiceServicer_to_server"]


def load_engine(config: ServiceConfig) -> Engine:
    """Loads the frozen model of a config and returns a started engine on the device it asks for."""
    device = torch.device("cuda" if config.num_gpus > 0 else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(config.num_threads)
    default = torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, config.dtype) if config.dtype else default
    engine = Engine(
        load_teacher(config, device, dtype),
        queue=FifoQueue(config.limits.max_queued_turns),
        max_retained_bytes=config.limits.max_retained_bytes,
    )
    engine.start()
    return engine


class TeacherDeployment:
    """One replica of the teacher."""

    def __init__(self, config: ServiceConfig) -> None:
        restrict_listening()
        self._engine = load_engine(config)
        self._servicer = TeacherServicer(self._engine, config)

    async def DescribeTeacher(  # noqa: N802 - Serve looks methods up by RPC name
        self, request: pb.DescribeTeacherRequest, grpc_context: Any
    ) -> pb.DescribeTeacherResponse:
        """See `TeacherServicer`."""
        return await self._servicer.DescribeTeacher(request, grpc_context)

    async def Converse(  # noqa: N802
        self, request_stream: AsyncIterator[pb.ConverseRequest], grpc_context: Any
    ) -> AsyncIterator[pb.ConverseResponse]:
        """See `TeacherServicer`."""
        async for answer in self._servicer.Converse(request_stream, grpc_context):
            yield answer

    def __del__(self) -> None:
        """Ends the compute thread; Serve calls this when a replica shuts down in good order."""
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.stop()


def build_app(config: ServiceConfig) -> Application:
    """Builds the Serve application; Ray validates `config` straight from a Serve YAML's `args`."""
    return (
        serve.deployment(TeacherDeployment)
        .options(
            name="Teacher",
            num_replicas=config.num_replicas,
            # One conversation holds a slot for as long as it lasts; the servicer itself says no first.
            max_ongoing_requests=config.limits.max_conversations + 16,
            max_queued_requests=16,
            ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
            graceful_shutdown_timeout_s=config.drain_s,
            graceful_shutdown_wait_loop_s=0.2,
            health_check_period_s=2.0,
            max_constructor_retry_count=3,
        )
        .bind(config)
    )
