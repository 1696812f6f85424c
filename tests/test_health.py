"""`grpc.health.v1` on a replica and on the directory: yes or no, for whoever asks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from services.teacher.config import ServiceConfig
from services.teacher.directory_server import DirectoryDeployment
from services.teacher.tenants import Tenants
from tests.test_directory import report
from tests.test_serve import free_port
from tests.test_tenant_access import guarded
from tests.test_tenant_file import Clock, file
from tests.toy_service import NOT_SERVING, SERVING, status_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.toy_server import ToyServer

__all__ = ["file", "guarded"]


def test_a_replica_serves_until_it_drains(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    assert status_of(server.address) == SERVING
    assert status_of(server.address, "preceptor.v1.TeacherService") == SERVING
    with pytest.raises(grpc.RpcError) as other:
        status_of(server.address, "shop.v1.Orders")
    assert other.value.code() is grpc.StatusCode.NOT_FOUND
    assert "shop" not in (other.value.details() or "")
    server.drain()
    assert status_of(server.address) == NOT_SERVING


def test_a_replica_whose_computation_has_ended_does_not_serve(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    server.engine.stop()
    assert status_of(server.address) == NOT_SERVING


def test_a_probe_needs_no_token_and_can_hold_nothing_open(guarded: ToyServer) -> None:
    assert status_of(guarded.address) == SERVING
    with grpc.insecure_channel(guarded.address) as channel:
        stub: Any = HealthStub(channel)
        watch = stub.Watch(HealthCheckRequest(), timeout=10)
        assert watch.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_replica_that_lets_nobody_in_does_not_serve(guarded: ToyServer, file: Path) -> None:
    gate, clock = guarded.gate, Clock()
    assert gate is not None
    gate._clock = clock
    file.unlink()
    assert status_of(guarded.address) == SERVING
    clock.now_s += 400
    assert status_of(guarded.address) == NOT_SERVING
    Tenants(tenants={}).save(file)
    assert status_of(guarded.address) == SERVING


def test_a_directory_that_lets_nobody_in_does_not_serve(file: Path) -> None:
    Tenants(tenants={}).save(file)
    deployment, clock = DirectoryDeployment(ServiceConfig(tenants=file, port=free_port())), Clock()
    assert deployment._gate is not None
    deployment._gate._clock = clock

    def status() -> int:
        return asyncio.run(deployment.Check(HealthCheckRequest(), None)).status

    deployment._directory.report(report("a"))
    file.unlink()
    assert status() == SERVING
    clock.now_s += 400
    assert status() == NOT_SERVING


def test_the_directory_serves_once_it_knows_of_a_replica() -> None:
    async def run() -> None:
        config = ServiceConfig(auth="none", port=free_port())
        deployment = DirectoryDeployment(config)
        await deployment.report(report("a", draining=True))
        address = f"{config.host}:{config.port}"
        assert await asyncio.to_thread(status_of, address) == NOT_SERVING
        await deployment.report(report("a"))
        assert await asyncio.to_thread(status_of, address) == SERVING
        assert deployment._server is not None
        await deployment._server.stop(None)

    asyncio.run(run())
