"""The Serve deployment's class and the binding of its servers, without a Ray; `test_serve.py` has one."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest
import torch
from ray.serve._private import default_impl

from preceptor.codec import CodecSpec
from preceptor.v1 import teacher_pb2 as pb
from services.teacher import ingress
from services.teacher.app import TeacherDeployment, build_app, load_engine
from services.teacher.environment import serve_environment
from services.teacher.local import ServeError, address_of, serving, wait_until_ready
from tests.test_serve import free_port
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TeacherDeployment]:
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    replica = TeacherDeployment(row_config(tmp_path))
    yield replica
    replica.__del__()


def test_a_replica_describes_its_teacher(deployment: TeacherDeployment) -> None:
    response = asyncio.run(deployment.DescribeTeacher(pb.DescribeTeacherRequest(), None))
    assert response.teacher.name == "rows"


def test_a_replica_holds_a_conversation(deployment: TeacherDeployment) -> None:
    frame = pb.Open(codec=CodecSpec(message_dim=2).to_proto(), reading=pb.READING_REPLACE)

    async def stream() -> AsyncIterator[pb.ConverseRequest]:
        yield pb.ConverseRequest(open=frame)
        yield pb.ConverseRequest(close=pb.Close())

    async def converse() -> list[str | None]:
        return [answer.WhichOneof("frame") async for answer in deployment.Converse(stream(), None)]

    assert asyncio.run(converse()) == ["opened"]


def test_the_application_has_room_for_every_conversation(tmp_path: Path) -> None:
    config = row_config(tmp_path, num_replicas=2)
    deployment = build_app(config)._bound_deployment
    assert deployment.num_replicas == 2
    assert deployment.max_ongoing_requests > config.limits.max_conversations


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
        ("127.0.0.1", 5000, ["127.0.0.1:5000"]),
        ("::1", 5001, ["[::1]:5001"]),
        ("127.0.0.1", 5002, []),
        ("127.0.0.1", 9000, []),
    ],
)
def test_replicas_are_bound_to_the_host_and_other_servers_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, port: int, bound: list[str]
) -> None:
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    config = row_config(tmp_path, host=host, port=5000, num_replicas=2)
    for name, value in serve_environment(config).items():
        monkeypatch.setenv(name, value)
    assert ingress.restrict_listening() == []
    ports: Any = Ports()
    default_impl.add_grpc_address(ports, f"[::]:{port}")
    assert ports.bound == bound


def test_an_address_names_every_replica(tmp_path: Path) -> None:
    config = row_config(tmp_path, host="::1", port=5000, num_replicas=2)
    assert address_of(config) == "preceptor://[::1]:5000,[::1]:5001"


def test_a_replica_that_does_not_answer_is_named(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(ServeError, match=f"127.0.0.1:{port} did not answer within 1 s"):
        wait_until_ready(row_config(tmp_path, port=port), 1.0)


def test_a_taken_port_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = row_config(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(ServeError, match="can't listen"), serving(config):
            pass
