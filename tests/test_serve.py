"""Real Ray Serve and real Ray Train: what no in-process server can show."""

from __future__ import annotations

import csv
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest
import torch
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from benchmarks.teachers import free_port
from preceptor.codec import CodecSpec, TeacherCodec
from services.teacher.environment import replica_ports
from student_client import FrameTooLargeError, TeacherClient, TeacherTalk, TeacherUnavailableError
from student_client.run import StudentRun
from tests.toy import NUM_IDS
from tests.toy_frames import exchange, opening, set_codec
from tests.toy_server import RawStudent
from tests.toy_service import (
    SERVING,
    await_replicas,
    curve,
    kill_replica,
    listeners,
    make_config,
    status_of,
    worst_difference,
)
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.teacher.config import ServiceConfig

__all__ = ["free_port"]

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ServiceConfig:
    return row_config(
        tmp_path_factory.mktemp("rows"),
        port=free_port(),
        num_replicas=2,
        drain_s=0.5,
        num_cpus=0.5,
        limits={"max_frame_bytes": 1 << 20, "max_unread_s": 5},
    )


@pytest.fixture(scope="module")
def address(service: ServiceConfig) -> Iterator[str]:
    """A teacher on real Ray Serve; its Ray also runs the training."""
    from services.teacher.local import serving  # noqa: PLC0415 - Ray's environment is set first

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    with serving(service) as address:
        yield address


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ids", "label"])
        writer.writerows([number % NUM_IDS, number % 2] for number in range(64))
    return path


def test_all_listen_on_loopback_only_and_no_proxy_serves_grpc(address: str) -> None:
    found = await_replicas(address, lambda found: len(found) == 2)
    for port in (*found, int(address.rpartition(":")[2])):
        (listener,) = listeners(port)
        assert listener.laddr.ip in {"127.0.0.1", "::ffff:127.0.0.1"}
        assert psutil.Process(listener.pid).name().startswith("ray::ServeRepli")
    assert listeners(9000) == []


def test_every_port_says_whether_it_serves(address: str) -> None:
    found = await_replicas(address, lambda found: len(found) == 2)
    for port in (*found, int(address.rpartition(":")[2])):
        assert status_of(f"127.0.0.1:{port}") == SERVING
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = HealthStub(channel)
            watch = stub.Watch(HealthCheckRequest(), timeout=10)
            assert watch.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_student_who_leaves_its_answers_unread_is_cut_off(address: str) -> None:
    found = await_replicas(address, lambda found: list(found.values()) == [0, 0])
    spec = CodecSpec(message_dim=128, message_len=1)
    state = dict(TeacherCodec(spec, 8).state_dict())
    turns = (exchange(turn, torch.randn(1024, 1, 128), wants_gradient=False) for turn in range(1, 25))
    with RawStudent(f"127.0.0.1:{min(found)}") as deaf:
        deaf.send(opening(spec), set_codec(state=state), *turns)
        await_replicas(address, lambda found: sum(found.values()) == 1)
        await_replicas(address, lambda found: sum(found.values()) == 0)


def test_conversations_are_spread_over_the_replicas(address: str) -> None:
    await_replicas(address, lambda found: list(found.values()) == [0, 0])
    talks = [
        TeacherTalk.connect(address, student_dim=6, message_dim=4, message_len=1, reading="replace")
        for _ in range(4)
    ]
    for talk in talks:
        talk(torch.randn(2, 6))
    await_replicas(address, lambda found: list(found.values()) == [2, 2])
    for talk in talks:
        talk.close()


def test_the_served_teacher_describes_itself(address: str) -> None:
    response = TeacherClient(address).describe()
    assert response.teacher.name == "rows"
    assert response.teacher.num_layers == 3
    assert response.limits.max_frame_bytes == 1 << 20


def test_a_frame_over_the_limit_is_refused_and_others_go_on(address: str) -> None:
    talk = TeacherTalk.connect(address, student_dim=6, message_dim=64, message_len=128, reading="replace")
    states = torch.randn(2, 6)
    undisturbed = talk(states).decoded
    greedy = TeacherTalk.connect(address, student_dim=6, message_dim=64, message_len=128, reading="replace")
    greedy.max_frame_bytes = 1 << 30
    with pytest.raises(FrameTooLargeError, match="expected at most 1048576"):
        greedy(torch.randn(64, 6))
    assert torch.equal(talk(states).decoded, undisturbed)
    talk.close()
    greedy.close()


def test_a_killed_replica_leaves_the_loss_curve_unchanged_and_comes_back(
    address: str, service: ServiceConfig, table: Path
) -> None:
    config = make_config(table, address)
    expected, _ = curve(config, {}, {})
    await_replicas(address, lambda found: list(found.values()) == [0, 0])

    def kill() -> None:
        kill_replica(address)

    got, facts = curve(config, {8: kill}, {3: kill})
    assert facts["num_reconnects"] >= 2
    assert worst_difference(got, expected) <= 1e-5

    up_s: list[float] = []

    def returned(found: dict[int, int]) -> bool:
        if not up_s and sum(bool(listeners(port)) for port in replica_ports(service)) == 2:
            up_s.append(time.monotonic())
        return len(found) == 2

    await_replicas(address, returned)
    assert not up_s or time.monotonic() - up_s[0] <= 5.0


def test_ray_train_gives_what_the_same_run_gives_without_ray(
    address: str, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from student_client.train import train  # noqa: PLC0415 - after Ray's environment is set

    monkeypatch.chdir(table.parent)  # a user's paths are relative to it; workers have another one
    config = make_config(Path(table.name), address)
    alone = StudentRun(config)
    while alone.epoch < config.epochs:
        list(alone.train_epoch())
    lines: list[dict[str, Any]] = []
    result = train(config, on_progress=lines.append)
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3, 4]
    files = {"config.yaml", "environment.json", "losses.png", "waiting.png", "student.json"}
    assert files <= {path.name for path in result.folder.iterdir()}
    assert result.facts["test"] == alone.finish()["test"]
    assert (result.folder / "student.safetensors").exists()
    assert json.loads((result.folder / "result.json").read_text())["epochs"] == 4
    alone.close()


def test_an_error_in_a_worker_reaches_the_driver(address: str, table: Path) -> None:
    from student_client.train import TrainError, train  # noqa: PLC0415

    broken = {"factory": "tests.toy_student:BrokenStudent"}
    config = make_config(table, address, name="broken", max_failures=0, student=broken)
    with pytest.raises(TrainError, match="RuntimeError: a defect of the student"):
        train(config)


def test_a_teacher_that_is_not_there_is_told_before_anything_is_started(address: str, table: Path) -> None:
    from student_client.train import train  # noqa: PLC0415

    nowhere = f"127.0.0.1:{free_port()}"
    with pytest.raises(TeacherUnavailableError, match=nowhere):
        train(make_config(table, nowhere, name="lost"))
    assert not (table.parent / "out" / "lost").exists()


# The last: those above have two replicas.
def test_a_redeployment_with_fewer_replicas_is_not_noticed(
    address: str, service: ServiceConfig, table: Path
) -> None:
    from ray import serve  # noqa: PLC0415

    from services.teacher.app import APP_NAME, build_app  # noqa: PLC0415

    config = make_config(table, address, epochs=8)
    expected, _ = curve(config, {}, {})
    smaller = service.model_copy(update={"num_replicas": 1})
    done = threading.Event()

    def redeploy() -> None:
        serve.run(build_app(smaller), name=APP_NAME, route_prefix=None)
        done.set()

    with ThreadPoolExecutor(max_workers=1) as pool:
        steps = {number: lambda: done.wait(0.5) for number in range(4, 32)}  # so that it happens meanwhile
        got, facts = curve(config, {3: lambda: pool.submit(redeploy), **steps}, {})
    assert done.is_set()
    assert facts["num_reconnects"] >= 1
    assert worst_difference(got, expected) <= 1e-5
    await_replicas(address, lambda found: len(found) == 1)
