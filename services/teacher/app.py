"""The teacher as a Ray Serve application; the only module that knows Ray Serve.

Students reach a replica's own gRPC server (direct ingress): Serve's proxies would cost more than the
teacher does for small messages, so they serve no gRPC (see `ingress`). Which replicas there are they learn
from the directory, a deployment of its own at the service's address. What direct ingress needs of the
environment is in `environment` and must be set in every Ray process before Ray starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from preceptor.hosts import is_any
from services.teacher.audit import write_audit_to
from services.teacher.autoscaling import QueueDelayPolicy, stats_of
from services.teacher.config import ServiceConfig
from services.teacher.directory import Reporter
from services.teacher.directory_server import DirectoryDeployment
from services.teacher.environment import missing_variables, socket_address
from services.teacher.gate import gate_of
from services.teacher.ingress import restrict_listening, watch_replica
from services.teacher.loading import load_engine
from services.teacher.logs import write_logs_of
from services.teacher.metrics import ReplicaMetrics
from services.teacher.ray_metrics import MetricsPusher
from services.teacher.servicer import TeacherServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

    from preceptor.v1 import teacher_pb2 as pb
    from preceptor.v1.status_pb2 import GetStatusRequest, GetStatusResponse
    from services.teacher.directory import Report

__all__ = ["APP_NAME", "SERVICER_FUNCTIONS", "TeacherDeployment", "build_app"]

APP_NAME = "preceptor"
SERVICER_FUNCTIONS = [
    "preceptor.v1.teacher_pb2_grpc.add_TeacherServiceServicer_to_server",
    "preceptor.v1.status_pb2_grpc.add_StatusServiceServicer_to_server",
    "services.teacher.health.add_health_to_server",
]

_SETTLE_S = 10.0


class TeacherDeployment:
    """One replica of the teacher.

    Args:
        config: the operator's.
        directory: the service's `DirectoryDeployment`.

    Raises:
        RuntimeError: this node's Ray was not started for a teacher.
    """

    def __init__(self, config: ServiceConfig, directory: DeploymentHandle) -> None:
        missing = missing_variables()
        if missing:
            raise RuntimeError(
                f"the Ray of {ray.util.get_node_ip_address()}: its environment lacks {', '.join(missing)}; "
                "expected what `preceptor environment` prints, set before it starts"
            )
        restrict_listening()
        write_audit_to(config.audit_log)
        self._logs = write_logs_of(config)
        watch_replica(self._start_reporting, self._drain, config)
        self._config = config
        self._directory = directory
        self._reporter: Reporter | None = None
        self._metrics: MetricsPusher | None = None
        gate = gate_of(config)
        self._engine = load_engine(config, gate)
        self._servicer = TeacherServicer(self._engine, config, gate)

    async def DescribeTeacher(  # noqa: N802 - Serve looks methods up by RPC name
        self, request: pb.DescribeTeacherRequest, grpc_context: Any
    ) -> pb.DescribeTeacherResponse:
        """See `TeacherServicer`."""
        return await self._servicer.DescribeTeacher(request, grpc_context)

    async def FindReplicas(  # noqa: N802
        self, request: pb.FindReplicasRequest, grpc_context: Any
    ) -> pb.FindReplicasResponse:
        """See `TeacherServicer`."""
        return await self._servicer.FindReplicas(request, grpc_context)

    async def GetStatus(self, request: GetStatusRequest, grpc_context: Any) -> GetStatusResponse:  # noqa: N802
        """See `TeacherServicer`."""
        return await self._servicer.GetStatus(request, grpc_context)

    async def Check(self, request: HealthCheckRequest, grpc_context: Any) -> HealthCheckResponse:  # noqa: N802
        """See `TeacherServicer`."""
        return await self._servicer.Check(request, grpc_context)

    async def Converse(  # noqa: N802
        self, request_stream: AsyncIterator[pb.ConverseRequest], grpc_context: Any
    ) -> AsyncIterator[pb.ConverseResponse]:
        """See `TeacherServicer`."""
        async for answer in self._servicer.Converse(request_stream, grpc_context):
            yield answer

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tells Serve's autoscaling of the load; see `autoscaling`."""
        return stats_of(self._engine.load())

    def check_health(self) -> None:
        """Fails if nothing would be computed any more; Serve then replaces the replica."""
        if not self._engine.is_alive:
            raise RuntimeError("the engine's threads: got one that has ended, expected them to run")

    def _start_reporting(self, port: int) -> None:
        host = ray.util.get_node_ip_address() if is_any(self._config.host) else self._config.host
        address = self._logs.replica = socket_address(host, port)
        if self._engine.signals.spans is not None:
            self._engine.signals.spans.replica = address
        if self._config.signals.metrics:
            self._metrics = MetricsPusher(ReplicaMetrics(self._engine, self._config.name, address))
            self._metrics.start()
        self._reporter = Reporter(lambda: self._servicer.report(address), self._send, self._servicer.learn)
        self._reporter.start()

    async def _send(self, report: Report) -> list[Report]:
        heard: list[Report] = await self._directory.report.remote(report)
        return heard

    def _drain(self) -> None:
        self._servicer.drain(self._config.drain_s)
        if self._reporter is not None:
            self._reporter.hurry()

    def __del__(self) -> None:
        """Ends the compute thread; Serve calls this when a replica shuts down in good order."""
        metrics = getattr(self, "_metrics", None)
        if metrics is not None:
            metrics.stop()
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.stop()


def build_app(config: ServiceConfig | Mapping[str, Any]) -> Application:
    """Builds the Serve application from the operator's config, or from the `args` of a Serve YAML.

    Raises:
        ValueError: a field is wrong; the message names it.
    """
    config = ServiceConfig.model_validate(config)
    directory = (
        serve.deployment(DirectoryDeployment)
        .options(
            name="Directory",
            num_replicas=1,
            max_surge_percent=100,
            max_ongoing_requests=256,
            # The service's address is its node's, so that must be known beforehand.
            ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
            health_check_period_s=1.0,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=1.0,
            logging_config={"enable_access_log": False},
        )
        .bind(config)
    )
    return (
        serve.deployment(TeacherDeployment)
        .options(
            name="Teacher",
            **_scaling(config),
            # A redeployed replica starts before the one it replaces goes; a GPU to spare is rare.
            max_surge_percent=0 if config.num_gpus else 1,
            # One conversation holds a slot for as long as it lasts; the servicer itself says no first.
            max_ongoing_requests=config.limits.max_conversations + 16,
            max_queued_requests=16,
            ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
            # After `drain_s` a replica only answers the turns it has.
            graceful_shutdown_timeout_s=config.drain_s + _SETTLE_S,
            graceful_shutdown_wait_loop_s=0.2,
            health_check_period_s=2.0,
            max_constructor_retry_count=3,
        )
        .bind(config, directory)
    )


def _scaling(config: ServiceConfig) -> dict[str, Any]:
    """Returns Serve's options of how many replicas there are."""
    scaling = config.autoscaling
    if scaling is None:
        return {"num_replicas": config.num_replicas}
    policy = AutoscalingPolicy(
        policy_function=f"{QueueDelayPolicy.__module__}:{QueueDelayPolicy.__name__}",
        policy_kwargs={"target_queue_s": scaling.target_queue_ms / 1000.0},
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=config.num_replicas,
            max_replicas=scaling.max_replicas,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            look_back_period_s=scaling.look_back_s,
            # Deprecated, and what it says is in the environment; but Serve warns if it is not the shorter.
            metrics_interval_s=scaling.look_back_s / 5,
            policy=policy,
        )
    }
