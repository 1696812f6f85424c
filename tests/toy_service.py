"""A served teacher seen from outside: its replicas' ports, and how a training run bears what befalls them."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import grpc
import psutil
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.status_pb2 import GetStatusRequest, GetStatusResponse
from preceptor.v1.status_pb2_grpc import StatusServiceStub
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from student_client.config import TrainConfig
from student_client.run import StudentRun

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


__all__ = [
    "NOT_SERVING",
    "SERVING",
    "await_replicas",
    "curve",
    "kill_replica",
    "listeners",
    "make_config",
    "status_of",
    "status_told",
    "worst_difference",
]

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING

_PATIENCE_S = 120.0


def status_of(address: str, service: str = "") -> int:
    """Asks a port for its health, as a probe does."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = HealthStub(channel)
        response: HealthCheckResponse = stub.Check(HealthCheckRequest(service=service), timeout=10)
    return response.status


def status_told(address: str, token: str | None = None, history_s: int = 0) -> GetStatusResponse:
    """Asks a port how its service is."""
    metadata = [("authorization", f"Bearer {token}")] if token else ()
    with grpc.insecure_channel(address) as channel:
        stub: Any = StatusServiceStub(channel)  # type: ignore[no-untyped-call]
        request = GetStatusRequest(history_s=history_s)
        response: GetStatusResponse = stub.GetStatus(request, timeout=30, metadata=metadata)
    return response


def listeners(port: int) -> list[Any]:
    return [
        connection
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    ]


def await_replicas(address: str, condition: Callable[[dict[int, int]], bool]) -> dict[int, int]:
    """Asks the service until its replicas, by port with their numbers of conversations, are as wished."""
    deadline_s = time.monotonic() + _PATIENCE_S
    with grpc.insecure_channel(address.removeprefix("preceptor://")) as channel:
        stub: Any = TeacherServiceStub(channel)  # type: ignore[no-untyped-call]
        found: dict[int, int] = {}
        while not (found and condition(found)):
            assert time.monotonic() < deadline_s, f"the replicas are {found}"
            try:
                response = stub.FindReplicas(pb.FindReplicasRequest(), timeout=30, wait_for_ready=True)
            except grpc.RpcError:  # none is up
                continue
            found = {
                int(replica.address.rpartition(":")[2]): replica.num_conversations
                for replica in response.replicas
            }
    return found


def kill_replica(address: str) -> None:
    """Kills the replica that holds the only conversation."""

    def busy(found: dict[int, int]) -> list[int]:
        # One that was killed just before is still named for a while.
        return [port for port, num_conversations in found.items() if num_conversations and listeners(port)]

    (port,) = busy(await_replicas(address, lambda found: len(busy(found)) == 1))
    (listener,) = listeners(port)
    os.kill(listener.pid, signal.SIGKILL)


def curve(
    config: TrainConfig, disturb: dict[int, Callable[[], object]], between: dict[int, Callable[[], object]]
) -> tuple[list[float], dict[str, float]]:
    """Trains in this process and returns the losses and the conversation's facts.

    `disturb` is called after so many steps, `between` after the reply and before the backward pass.
    """
    run = StudentRun(config)
    losses: list[float] = []

    def interrupt(_module: object, _inputs: object, _outcome: object) -> None:
        between.get(len(losses), lambda: None)()

    hook = run.objective.register_forward_hook(interrupt)
    while run.epoch < config.epochs:
        for step in run.train_epoch():
            losses.append(step["loss"])
            disturb.get(len(losses), lambda: None)()
    hook.remove()
    facts = run.conversation_facts(run.pace.all_steps())
    run.close()
    return losses, facts


def worst_difference(got: list[float], expected: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(got, expected, strict=True))


def make_config(table: Path, address: str, **changes: Any) -> TrainConfig:
    """Returns a run of a `ToyStudent` on a table of ids and labels."""
    student = {
        "factory": "tests.toy_student:ToyStudent",
        "kwargs": {},
        "lower": "blocks.0",
        "upper": "blocks.1",
        "num_classes_kwarg": "num_classes",
        **changes.pop("student", {}),
    }
    content = {
        "name": "toy",
        "output": table.parent / "out",
        "epochs": 4,
        "batch_size": 16,
        "checkpoint_every_epochs": 1,
        "student": student,
        "data": {"train": table, "task": "classification", "label": "label", "features": {"ids": "int64"}},
        "teacher": {"address": address},
        "talk": {"codec": {"message_dim": 4}, "reading": "replace", "deterministic": True},
        "losses": {"interact": 1.0, "message": 0.3, "state": 0.2, "kd": 0.5},
        "cpus_per_worker": 0.5,
        **changes,
    }
    return TrainConfig.model_validate(content)
