"""The Serve deployment's class and the binding of its servers, without a Ray; `test_serve.py` has one."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import ray
import torch
from ray.serve._private import default_impl, grpc_util
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.replica import Replica

from preceptor.codec import CodecSpec
from preceptor.v1 import teacher_pb2 as pb
from services.teacher import ingress, local
from services.teacher.app import TeacherDeployment, build_app
from services.teacher.connections import CONNECTION_OPTIONS
from services.teacher.directory import Directory, Report
from services.teacher.environment import HOST_VARIABLE, replica_ports, serve_environment
from services.teacher.loading import load_engine
from services.teacher.local import ServeError, address_of, serving, wait_until_ready
from tests.test_serve import free_port
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.toy_server import ToyServer


class LocalDirectory:
    """A directory in this process behind the face of a Serve handle."""

    def __init__(self) -> None:
        self.known = Directory()
        self.reports = asyncio.Queue[Report]()

    @property
    def report(self) -> LocalDirectory:
        return self

    async def remote(self, report: Report) -> list[Report]:
        await self.reports.put(report)
        return self.known.report(report)


@pytest.fixture
def directory() -> LocalDirectory:
    return LocalDirectory()


@pytest.fixture
def deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: LocalDirectory
) -> Iterator[TeacherDeployment]:
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    options = grpc_util.DEFAULT_GRPC_SERVER_OPTIONS
    monkeypatch.setattr(grpc_util, "DEFAULT_GRPC_SERVER_OPTIONS", options)
    monkeypatch.setattr(Replica, "perform_graceful_shutdown", Replica.perform_graceful_shutdown)
    monkeypatch.setattr(ingress, "_watcher", ingress._Watcher())
    # As on a node that others reach, but without asking for tokens; nothing is bound.
    config = row_config(tmp_path, port=5000).model_copy(update={"host": "0.0.0.0"})  # noqa: S104
    for name, value in serve_environment(config).items():
        monkeypatch.setenv(name, value)
    handle: Any = directory
    replica = TeacherDeployment(config, handle)
    yield replica
    replica.__del__()


def test_a_replica_describes_its_teacher(deployment: TeacherDeployment) -> None:
    response = asyncio.run(deployment.DescribeTeacher(pb.DescribeTeacherRequest(), None))
    assert response.teacher.name == "rows"


def test_a_replica_reports_where_it_listens_and_that_it_is_being_stopped(
    deployment: TeacherDeployment, directory: LocalDirectory
) -> None:
    async def run() -> None:
        ports: Any = Ports()
        default_impl.add_grpc_address(ports, "[::]:5001")
        first = await directory.reports.get()
        assert not first.draining
        assert first.address.endswith(":5001")
        assert first.address != "0.0.0.0:5001"  # students can't connect to that
        await directory.reports.get()  # what the first brought is learned before the next goes out
        found = await deployment.FindReplicas(pb.FindReplicasRequest(), None)
        assert [replica.address for replica in found.replicas] == [first.address]

        stopped = asyncio.get_running_loop().create_future()
        stopped.set_result(None)
        await Replica.perform_graceful_shutdown(SimpleNamespace(_graceful_shutdown_task=stopped))
        assert (await directory.reports.get()).draining

    asyncio.run(run())


def test_a_replica_holds_a_conversation(deployment: TeacherDeployment) -> None:
    frame = pb.Open(codec=CodecSpec(message_dim=2).to_proto(), reading=pb.READING_REPLACE)

    async def stream() -> AsyncIterator[pb.ConverseRequest]:
        yield pb.ConverseRequest(open=frame)
        yield pb.ConverseRequest(close=pb.Close())

    async def converse() -> list[str | None]:
        return [answer.WhichOneof("frame") async for answer in deployment.Converse(stream(), None)]

    assert asyncio.run(converse()) == ["opened"]


def test_a_ray_that_was_not_started_for_a_teacher_is_told_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: LocalDirectory
) -> None:
    config, handle = row_config(tmp_path), directory
    for name, value in serve_environment(config).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(HOST_VARIABLE)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    with pytest.raises(RuntimeError, match=rf"10\.0\.0\.7: its environment lacks {HOST_VARIABLE};"):
        TeacherDeployment(config, handle)


def test_the_application_has_room_for_every_conversation(tmp_path: Path) -> None:
    config = row_config(tmp_path, num_replicas=2)
    deployment = build_app(config)._bound_deployment
    assert deployment.num_replicas == 2
    assert deployment.max_ongoing_requests > config.limits.max_conversations
    assert deployment._deployment_config.graceful_shutdown_timeout_s > config.drain_s


def test_ray_builds_the_application_from_the_fields_of_a_yaml(tmp_path: Path) -> None:
    args = row_config(tmp_path, num_replicas=3).model_dump(mode="json")
    application = call_user_app_builder_with_args_if_necessary(build_app, args)
    assert application._bound_deployment.num_replicas == 3
    with pytest.raises(ValueError, match="num_replicas"):
        call_user_app_builder_with_args_if_necessary(build_app, {**args, "num_replicas": 0})


def test_the_teacher_computes_in_what_the_config_says(tmp_path: Path) -> None:
    engine = load_engine(row_config(tmp_path, dtype="bfloat16"))
    assert engine.teacher.facts.dtype is torch.bfloat16
    engine.stop()


class Ports:
    """Stands for a gRPC server and notes what it is bound to."""

    def __init__(self) -> None:
        self.bound: list[str] = []

    def add_insecure_port(self, address: str) -> None:
        self.bound.append(address)


@pytest.mark.parametrize(
    ("host", "port", "bound"),
    [
        ("127.0.0.1", 5001, ["127.0.0.1:5001"]),
        ("::1", 5002, ["[::1]:5002"]),
        ("127.0.0.1", 5010, ["127.0.0.1:5010"]),
        ("127.0.0.1", 5011, []),
        ("127.0.0.1", 5000, []),
        ("127.0.0.1", 9000, []),
    ],
)
def test_replicas_are_bound_to_the_host_and_other_servers_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, port: int, bound: list[str]
) -> None:
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    options = grpc_util.DEFAULT_GRPC_SERVER_OPTIONS
    monkeypatch.setattr(grpc_util, "DEFAULT_GRPC_SERVER_OPTIONS", options)
    config = row_config(tmp_path, host=host, port=5000, num_replicas=2)
    for name, value in serve_environment(config).items():
        monkeypatch.setenv(name, value)
    assert ingress.restrict_listening() == []
    ports: Any = Ports()
    default_impl.add_grpc_address(ports, f"[::]:{port}")
    assert ports.bound == bound
    assert set(CONNECTION_OPTIONS) < set(grpc_util.DEFAULT_GRPC_SERVER_OPTIONS)


def test_a_service_has_one_address(tmp_path: Path) -> None:
    config = row_config(tmp_path, host="::1", port=5000, num_replicas=2)
    assert address_of(config) == "preceptor://[::1]:5000"


def test_ports_end_where_there_are_no_more(tmp_path: Path) -> None:
    assert list(replica_ports(row_config(tmp_path, port=65532, num_replicas=2))) == [65533, 65534, 65535]


def test_a_service_that_does_not_answer_is_named(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(ServeError, match=f"127.0.0.1:{port} did not answer within 1 s"):
        wait_until_ready(row_config(tmp_path, port=port), 1.0)


def test_a_server_without_a_directory_is_ready_alone(server: ToyServer, tmp_path: Path) -> None:
    wait_until_ready(row_config(tmp_path, port=server.port), 10.0)


def test_replicas_that_are_missing_are_told(server: ToyServer, tmp_path: Path) -> None:
    config = row_config(tmp_path, port=server.port, num_replicas=2)
    with pytest.raises(ServeError, match=f"knows of 127.0.0.1:{server.port}, expected 2 replicas"):
        wait_until_ready(config, 0.2)


def test_a_taken_port_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = row_config(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(ServeError, match="can't listen"), serving(config):
            pass


def test_too_few_ports_for_the_replicas_are_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = row_config(tmp_path, port=free_port(), num_replicas=2)
    monkeypatch.setattr(local, "replica_ports", lambda _: range(config.port + 1, config.port + 2))
    with pytest.raises(ServeError, match="expected 2 for the replicas"), serving(config):
        pass
