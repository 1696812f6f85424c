"""What the tests of the core share: a tiny teacher, and servers of it on loopback ports."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from preceptor.codec import CodecSpec
from preceptor.terms import Reading
from services.teacher.families import load_teacher
from services.teacher.loading import build_engine
from student_client import ClientOptions, TeacherClient, TeacherTalk
from tests.toy import HIDDEN, STUDENT_DIM, toy_config
from tests.toy_frames import MESSAGE_DIM, MESSAGE_LEN
from tests.toy_server import ToyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services.teacher.config import ServiceConfig
    from services.teacher.engine import Engine
    from services.teacher.families.base import Teacher

torch.set_num_threads(1)
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # servers are killed here, and gRPC would tell of it
# Wall time says nothing on a machine that others share.
settings.register_profile(
    "shared", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared")

CPU = torch.device("cpu")
QUICK = ClientOptions(connect_timeout_s=10, answer_timeout_s=30, deadline_s=60, initial_backoff_s=0.01)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="session")
def service_config(toy_folder: Path) -> ServiceConfig:
    return toy_config(toy_folder)


@pytest.fixture(scope="session")
def tiny_teacher(service_config: ServiceConfig) -> Teacher:
    return load_teacher(service_config, CPU, torch.float32)


@pytest.fixture(scope="session")
def headless_teacher(toy_folder: Path) -> Teacher:
    return load_teacher(toy_config(toy_folder, head=None), CPU, torch.float32)


@pytest.fixture(scope="session")
def other_teacher(toy_folder: Path) -> Teacher:
    """Of the same make as `tiny_teacher`, with other weights."""
    return load_teacher(toy_config(toy_folder, seed=1), CPU, torch.float32)


@pytest.fixture
def engine(tiny_teacher: Teacher, service_config: ServiceConfig) -> Iterator[Engine]:
    """A running engine of the tiny teacher."""
    engine = build_engine(tiny_teacher, service_config)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def server(tiny_teacher: Teacher, service_config: ServiceConfig) -> Iterator[ToyServer]:
    """A server of the tiny teacher that all tests share: it must be left as it was found."""
    server = ToyServer(tiny_teacher, service_config)
    server.start()
    yield server
    server.close()


@pytest.fixture
def start_server(tiny_teacher: Teacher, service_config: ServiceConfig) -> Iterator[Callable[..., ToyServer]]:
    """Starts servers of a test's own; keywords set limits, arguments see `ToyServer`."""
    servers: list[ToyServer] = []

    def start(teacher: Teacher = tiny_teacher, grpc_limit: int | None = None, **limits: int) -> ToyServer:
        changed = service_config.limits.model_copy(update=limits)
        config = service_config.model_copy(update={"limits": changed})
        server = ToyServer(teacher, config, grpc_limit)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., TeacherTalk]]:
    """Builds talks with some servers; their parameters are always the same."""
    talks: list[TeacherTalk] = []

    def build(
        *addresses: str,
        message_len: int | None = MESSAGE_LEN,
        hidden_dim: int | None = None,
        reading: Reading | str = Reading.REPLACE,
        options: ClientOptions = QUICK,
        **fields: Any,
    ) -> TeacherTalk:
        spec = CodecSpec(
            kind="linear" if hidden_dim is None else "two_layer",
            message_dim=MESSAGE_DIM,
            message_len=message_len,
            hidden_dim=hidden_dim,
        )
        client = TeacherClient(",".join(addresses), options)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            talk = TeacherTalk(
                client, spec, student_dim=STUDENT_DIM, teacher_dim=HIDDEN, reading=reading, **fields
            )
        talks.append(talk)
        return talk

    yield build
    for talk in talks:
        talk.close()
