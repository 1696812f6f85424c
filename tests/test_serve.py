"""Real Ray Serve and real Ray Train: what no in-process server can show."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch

from student_client import FrameTooLargeError, TeacherClient, TeacherTalk, TeacherUnavailableError
from student_client.config import TrainConfig
from student_client.run import StudentRun
from tests.toy import NUM_IDS
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.serve

LOSSES = {"interact": 1.0, "message": 0.3, "state": 0.2, "kd": 0.5}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A teacher on real Ray Serve; its Ray also runs the training."""
    from services.teacher.local import serving  # noqa: PLC0415 - Ray's environment is set first

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    config = row_config(
        tmp_path_factory.mktemp("rows"),
        port=free_port(),
        drain_s=0.2,
        num_cpus=0.5,
        limits={"max_frame_bytes": 1 << 20},
    )
    with serving(config) as address:
        yield address


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ids", "label"])
        writer.writerows([number % NUM_IDS, number % 2] for number in range(64))
    return path


def make_config(table: Path, address: str, **changes: Any) -> TrainConfig:
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
        "talk": {"codec": {"message_dim": 4}},
        "losses": LOSSES,
        "cpus_per_worker": 0.5,
        **changes,
    }
    return TrainConfig.model_validate(content)


def listeners(port: int) -> list[Any]:
    return [
        connection
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    ]


def kill_replica(address: str) -> None:
    (listener,) = listeners(int(address.rpartition(":")[2]))
    os.kill(listener.pid, signal.SIGKILL)


def test_the_replica_listens_on_loopback_only_and_no_proxy_serves_grpc(address: str) -> None:
    (listener,) = listeners(int(address.rpartition(":")[2]))
    assert listener.laddr.ip in {"127.0.0.1", "::ffff:127.0.0.1"}
    assert psutil.Process(listener.pid).name().startswith("ray::ServeRepli")
    assert listeners(9000) == []


def test_the_served_teacher_describes_itself(address: str) -> None:
    response = TeacherClient(address).describe()
    assert response.teacher.name == "rows"
    assert response.teacher.num_layers == 3
    assert response.limits.max_frame_bytes == 1 << 20


def test_a_frame_over_the_limit_is_refused_and_others_go_on(address: str) -> None:
    talk = TeacherTalk.connect(address, student_dim=6, message_dim=64, message_len=128)
    states = torch.randn(2, 6)
    undisturbed = talk(states).decoded
    greedy = TeacherTalk.connect(address, student_dim=6, message_dim=64, message_len=128)
    greedy.max_frame_bytes = 1 << 30
    with pytest.raises(FrameTooLargeError, match="expected at most 1048576"):
        greedy(torch.randn(64, 6))
    assert torch.equal(talk(states).decoded, undisturbed)
    talk.close()
    greedy.close()


def curve(config: TrainConfig, kill_at: dict[int, str]) -> tuple[list[float], dict[str, float]]:
    """Trains in this process; kills the replica before or within the given steps; returns the losses."""
    assert config.teacher is not None
    run = StudentRun(config)
    talk = run.objective.talk
    assert talk is not None
    address = config.teacher.address
    losses: list[float] = []

    def kill_between(_module: object, _inputs: object, _heard: object) -> None:
        if kill_at.get(len(losses)) == "between":
            kill_replica(address)

    hook = talk.register_forward_hook(kill_between)  # after the reply, before the backward pass
    while run.epoch < config.epochs:
        for step in run.train_epoch():
            losses.append(step["loss"])
            if kill_at.get(len(losses)) == "before":
                kill_replica(address)
    hook.remove()
    facts = run.conversation_facts()
    run.close()
    return losses, facts


def test_a_killed_replica_leaves_the_loss_curve_unchanged(address: str, table: Path) -> None:
    config = make_config(table, address)
    expected, _ = curve(config, {})
    got, facts = curve(config, {3: "between", 8: "before"})
    assert facts["num_reconnects"] >= 2
    worst = max(abs(a - b) for a, b in zip(got, expected, strict=True))
    assert worst <= 1e-5


def test_ray_train_gives_what_the_same_run_gives_without_ray(
    address: str, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from student_client.train import train  # noqa: PLC0415 - after Ray's environment is set

    monkeypatch.chdir(
        table.parent
    )  # a user's paths are relative, a worker's working directory is another one
    config = make_config(Path(table.name), address)
    alone = StudentRun(config)
    while alone.epoch < config.epochs:
        list(alone.train_epoch())
    lines: list[dict[str, Any]] = []
    result = train(config, on_progress=lines.append)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert result.facts["test"] == alone.finish()["test"]
    assert (result.folder / "student.safetensors").exists()
    assert json.loads((result.folder / "result.json").read_text())["epochs"] == 4
    alone.close()


def test_a_lost_worker_resumes_exactly_from_its_checkpoint(address: str, table: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415

    from student_client.train import train  # noqa: PLC0415

    marker = tmp_path / "crashed"
    crashing = {
        "factory": "tests.toy_student:CrashingStudent",
        # Step 10 is in the third of four epochs; the second one's checkpoint is the last.
        "kwargs": {"marker": str(marker), "at_step": 10},
    }
    disturbed = train(make_config(table, address, name="crash", student=crashing))
    assert marker.exists()
    undisturbed = train(make_config(table, address, name="calm"))
    ours = load_file(disturbed.folder / "student.safetensors")
    theirs = load_file(undisturbed.folder / "student.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_workers_average_the_codecs_gradients(address: str, table: Path) -> None:
    from student_client.train import train  # noqa: PLC0415

    # Without dropout, which differs between workers.
    one = train(make_config(table, address, name="one", student={"kwargs": {"dropout": 0.0}}))
    two = train(make_config(table, address, name="two", num_workers=2, student={"kwargs": {"dropout": 0.0}}))
    assert abs(one.facts["valid"] - two.facts["valid"]) <= 1e-6
    states = [max(run.folder.glob("checkpoint_*/state.pt")) for run in (one, two)]
    first, second = (torch.load(path, weights_only=True) for path in states)
    for name, tensor in first["objective"].items():
        torch.testing.assert_close(second["objective"][name], tensor, rtol=1e-4, atol=1e-5)


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
