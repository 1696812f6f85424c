"""A fleet on real Ray, against a served teacher: what is killed changes nothing but the time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from benchmarks.ddp import last_state, worst_difference
from student_client.fleet import Fleet
from student_client.fleet_config import FleetConfig
from student_client.fleet_jobs import RayJobs, job_server
from tests.test_serve import free_port
from tests.toy_service import listeners
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.teacher.config import ServiceConfig
    from student_client.fleet import StudentView

pytestmark = pytest.mark.serve

ROOT = str(Path(__file__).resolve().parents[1])
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ServiceConfig:
    return row_config(tmp_path_factory.mktemp("rows"), port=free_port(), drain_s=0.5, num_cpus=0.5)


@pytest.fixture(scope="module")
def address(service: ServiceConfig) -> Iterator[str]:
    """A teacher, in a Ray that takes the students' jobs too."""
    from services.teacher.local import serving  # noqa: PLC0415 - Ray's environment is set first

    with serving(service, num_cpus=16, jobs=True) as address:
        yield address


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "table.csv"
    path.write_text("ids,label\n" + "".join(f"{number % 32},{number % 2}\n" for number in range(64)))
    return path


def fleet_of(table: Path, address: str, name: str, **student: Any) -> FleetConfig:
    base = {
        "epochs": 6,
        "batch_size": 16,
        "checkpoint_every_epochs": 1,
        "log_every_steps": 1,
        "cpus_per_worker": 0.5,
        "student": {
            "factory": "tests.toy_student:ToyStudent",
            "lower": "blocks.0",
            "upper": "blocks.1",
            "num_classes_kwarg": "num_classes",
            **student,
        },
        "data": {"train": str(table), "task": "classification", "features": {"ids": "int64"}},
        "teacher": {"address": address},
        "talk": {"codec": {"message_dim": 4}, "reading": "replace", "deterministic": True},
        "losses": {"interact": 1.0, "message": 0.3, "kd": 0.5},
        "python_path": [ROOT],
    }
    content = {
        "name": name,
        "output": str(table.parent / name),
        "parallelism": 3,
        "base": base,
        "students": [{"name": f"student-{seed}", "seed": seed} for seed in range(3)],
    }
    return FleetConfig.of(content, table.parent)


def run(config: FleetConfig, on_change: Callable[[list[StudentView]], None]) -> list[StudentView]:
    with job_server(None) as (url, is_own):
        assert not is_own
        fleet = Fleet(config, RayJobs(url, config.job, config.folder / "configs", python=sys.executable))
        fleet.run(on_change)
        return fleet.views()


def find(matches: Callable[[str], bool], what: str) -> psutil.Process:
    """Waits for a process of this test's Ray whose command is as wished."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                if matches(" ".join(process.cmdline())):
                    return process
        threading.Event().wait(0.05)
    raise AssertionError(f"no {what} was found")


def kill_some(config: FleetConfig, service: ServiceConfig) -> list[str]:
    """Kills a worker, the driver of another student, and the teacher's only replica."""
    killed = []
    worker = find(lambda command: command.startswith("ray::RayTrainWorker"), "worker")
    driver = find(lambda command: "student_client train student-1.yaml" in command, "driver")
    while not all((run.folder / "metrics.jsonl").exists() for run in config.runs):
        threading.Event().wait(0.1)
    for process, what in ((worker, "worker"), (driver, "driver")):
        for each in [*process.children(recursive=True), process] if what == "driver" else [process]:
            os.kill(each.pid, signal.SIGKILL)
        killed.append(what)
    (replica,) = [
        listener
        for port in range(service.port + 1, service.port + 10)
        for listener in listeners(port)
        if psutil.Process(listener.pid).name().startswith("ray::ServeRepli")
    ][:1]
    os.kill(replica.pid, signal.SIGKILL)
    killed.append("replica")
    return killed


def test_a_fleet_ends_with_the_same_table_whatever_is_killed(
    service: ServiceConfig, address: str, table: Path
) -> None:
    calm = fleet_of(table, address, "calm")
    expected = run(calm, lambda _: None)
    assert [each.state.state for each in expected] == ["done"] * 3
    disturbed = fleet_of(
        table, address, "disturbed", factory="tests.toy_student:SlowStudent", kwargs={"step_s": 0.4}
    )
    killed: list[str] = []
    killer = threading.Thread(target=lambda: killed.extend(kill_some(disturbed, service)))
    killer.start()
    got = run(disturbed, lambda _: None)
    killer.join(PATIENCE_S)
    assert killed == ["worker", "driver", "replica"]
    assert sum(each.state.attempts for each in got) >= 4  # the driver's job was started again
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.name, ours.state.state) == (theirs.name, "done"), ours.state.error
        assert (ours.progress.valid, ours.progress.test) == (theirs.progress.valid, theirs.progress.test)
    for ours_run, theirs_run in zip(disturbed.runs, calm.runs, strict=True):
        assert worst_difference(last_state(ours_run.folder), last_state(theirs_run.folder)) <= 1e-5


def test_one_students_defect_stops_no_other_and_is_told(address: str, table: Path) -> None:
    config = fleet_of(table, address, "defect")
    broken = config.runs[1].student.model_copy(update={"factory": "tests.toy_student:BrokenStudent"})
    config._runs = (config.runs[0], config.runs[1].model_copy(update={"student": broken, "max_failures": 0}))
    seen: list[set[str]] = []
    good, bad = run(config, lambda views: seen.append({each.state.state for each in views}))
    assert (good.state.state, bad.state.state) == ("done", "failed")
    assert "a defect of the student" in bad.state.error
    assert bad.state.attempts == 1
    assert {"running"} in seen
