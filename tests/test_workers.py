"""Ray Train's workers: several learn what one learns, and lost ones change nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import ray
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.ddp import last_state, worst_difference
from services.teacher.families import load_teacher
from student_client.config import TeacherConfig
from student_client.errors import TeacherUnavailableError
from student_client.locks import FolderLockedError, folder_lock
from student_client.records import METRICS_FILE, STUDENT_FILE, read_metrics, read_new_lines
from student_client.told_file import TOLD_FILE
from tests.test_serve import free_port, table
from tests.toy_server import ToyServer
from tests.toy_service import make_config
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from student_client.config import TrainConfig
    from student_client.train import TrainResult

__all__ = ["table"]

pytestmark = pytest.mark.serve

SILENT: dict[str, Any] = {"kwargs": {"dropout": 0.0}}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from services.teacher.local import serving  # noqa: PLC0415 - Ray's environment is set first

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    config = row_config(tmp_path_factory.mktemp("rows"), port=free_port(), drain_s=0.5, num_cpus=0.5)
    with serving(config) as address:
        yield address


def config_of(table: Path, address: str, name: str, **changes: Any) -> TrainConfig:
    # 52 examples to learn from: the last batch of an epoch has one, so of two workers one has none.
    options = {"connect_timeout_s": 10, "answer_timeout_s": 10, "deadline_s": 10}
    teacher = {"address": address, "options": options}
    return make_config(table, address, name=name, teacher=teacher, batch_size=17, **changes)


def trained(table: Path, address: str, name: str, **changes: Any) -> TrainResult:
    from student_client.train import train  # noqa: PLC0415

    return train(config_of(table, address, name, **changes))


def stricken(student: str, marker: Path, at_step: int, **kwargs: Any) -> dict[str, Any]:
    """A student of `toy_student` that something befalls."""
    return {
        "factory": f"tests.toy_student:{student}",
        "kwargs": {"marker": str(marker), "at_step": at_step, **kwargs},
    }


@pytest.fixture(scope="module")
def same_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("same") / "table.csv"
    path.write_text("ids,label\n" + "".join(f"{number % 32},{number % 2}\n" for number in range(64)))
    return path


@pytest.fixture(scope="module")
def one(address: str, same_table: Path) -> TrainResult:
    """What one worker learns without dropout, which differs between workers."""
    return trained(same_table, address, "one", student=SILENT)


@pytest.fixture(scope="module")
def calm(address: str, same_table: Path) -> TrainResult:
    """What one worker learns that nothing befalls."""
    return trained(same_table, address, "calm")


def test_two_workers_learn_what_one_learns(address: str, table: Path, one: TrainResult) -> None:
    two = trained(table, address, "two", num_workers=2, student=SILENT)
    assert worst_difference(last_state(two.folder), last_state(one.folder)) <= 1e-5
    assert two.facts["test"] == one.facts["test"]


def test_a_stream_teaches_two_workers_what_it_teaches_one(address: str, table: Path) -> None:
    sources = dict.fromkeys(("train", "valid", "test"), table)
    data = {"task": "classification", "features": {"ids": "int64"}, "stream": True, "shuffle_rows": 32}
    one, two = (
        trained(
            table,
            address,
            f"stream-{num_workers}",
            num_workers=num_workers,
            student=SILENT,
            epochs=2,
            data=data | sources,
        )
        for num_workers in (1, 2)
    )
    assert two.facts["num_train"] == 64
    assert worst_difference(last_state(two.folder), last_state(one.folder)) <= 1e-5


def assert_same_weights(ours: TrainResult, theirs: TrainResult) -> None:
    weights, expected = (load_file(each.folder / STUDENT_FILE) for each in (ours, theirs))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_lost_worker_resumes_exactly_from_its_checkpoint(
    address: str, table: Path, tmp_path: Path, calm: TrainResult
) -> None:
    marker = tmp_path / "crashed"
    # Step 10 is in the third of four epochs; the last checkpoint is of step 9.
    crashing = stricken("CrashingStudent", marker, at_step=10)
    assert_same_weights(trained(table, address, "crash", student=crashing, checkpoint_every_steps=3), calm)
    assert marker.exists()


def test_two_workers_and_a_resumed_run_are_told_once_what_they_are_distilled_from(
    address: str, table: Path, tmp_path: Path
) -> None:
    told = {"losses": {"task": 0.5, "kd": 1.0, "kd_source": "probe"}, "talk": {"deterministic": True}}
    marker = tmp_path / "crashed"
    crashing = stricken("CrashingStudent", marker, at_step=10, dropout=0.0)
    two = trained(table, address, "told-2", num_workers=2, student=crashing, checkpoint_every_steps=3, **told)
    assert (two.folder / TOLD_FILE).stat().st_mtime < marker.stat().st_mtime  # it was not made anew
    one = trained(table, address, "told-1", student=SILENT, **told)
    assert two.facts["probe"] == one.facts["probe"]
    assert torch.equal(*(load_file(each.folder / TOLD_FILE)["outputs"] for each in (one, two)))
    assert worst_difference(last_state(two.folder), last_state(one.folder)) <= 1e-5


def test_a_checkpoint_that_the_disk_has_no_room_for_costs_the_steps_since_the_one_before(
    address: str, table: Path, tmp_path: Path, calm: TrainResult
) -> None:
    student = stricken("FullDiskStudent", tmp_path / "full", at_step=10)
    result = trained(table, address, "full", student=student, checkpoint_every_steps=3)
    assert_same_weights(result, calm)
    lines, _ = read_new_lines(result.folder / METRICS_FILE, 0)
    failed, resumed = (line for line in lines if line["kind"] in ("failed", "resumed"))
    path = result.folder / "checkpoint_000000012" / "state.pt"
    assert failed["error"] == f"OSError: [Errno 27] File too large: '{path}'"
    assert (resumed["step"], resumed["passed_over"]) == (9, ["checkpoint_000000012"])


def test_a_driver_that_is_killed_in_the_middle_of_a_checkpoint_goes_on_from_the_one_before(
    address: str, table: Path, tmp_path: Path, calm: TrainResult
) -> None:
    from student_client.train import train  # noqa: PLC0415

    config = config_of(
        table, address, "killed", student=stricken("SlowDiskStudent", tmp_path / "slow", at_step=10)
    )
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    gcs = ray.get_runtime_context().gcs_address
    with subprocess.Popen(
        [sys.executable, "-m", "student_client", "train", str(path), "--json"],
        env={**os.environ, "RAY_ADDRESS": gcs},
        stdout=subprocess.DEVNULL,
    ) as driver:
        deadline_s = time.monotonic() + 120
        while not (rests := list(config.folder.glob("checkpoint_000000012/.part-*"))):
            assert driver.poll() is None
            assert time.monotonic() < deadline_s
            threading.Event().wait(0.1)
        driver.kill()
    assert_same_weights(train(config), calm)
    assert not any(rest.exists() for rest in rests)


def test_an_elastic_run_that_loses_a_worker_learns_what_one_learns(
    address: str, table: Path, tmp_path: Path, one: TrainResult
) -> None:
    marker = tmp_path / "crashed"
    crashing = stricken("CrashingStudent", marker, at_step=10, dropout=0.0)
    elastic = trained(table, address, "elastic", student=crashing, num_workers=[1, 2])
    assert marker.exists()
    assert worst_difference(last_state(elastic.folder), last_state(one.folder)) <= 1e-5


def test_a_worker_that_hangs_is_not_waited_for_for_ever(
    address: str, table: Path, tmp_path: Path, one: TrainResult
) -> None:
    marker = tmp_path / "hung"
    hanging = stricken("HangingStudent", marker, at_step=10, dropout=0.0)
    run = trained(table, address, "hang", student=hanging, num_workers=2, peer_timeout_s=12)
    assert marker.exists()
    assert worst_difference(last_state(run.folder), last_state(one.folder)) <= 1e-5


def test_an_attempt_that_broke_before_its_first_checkpoint_leaves_no_trace_in_the_metrics(
    address: str, table: Path, tmp_path: Path
) -> None:
    crashing = stricken("CrashingStudent", tmp_path / "crashed", at_step=3)
    run = trained(table, address, "early", student=crashing, log_every_steps=1, checkpoint_every_epochs=2)
    lines = read_metrics(run.folder / METRICS_FILE)
    steps = [line["step"] for line in lines if line["kind"] == "steps"]
    assert steps == list(range(1, len(steps) + 1))


def test_more_than_a_fixed_ray_has_is_told_not_waited_for(address: str, table: Path) -> None:
    from student_client.cluster import check_resources  # noqa: PLC0415

    with pytest.raises(ValueError, match="cpus_per_worker: got 9 CPUs in all, expected at most 8"):
        check_resources(make_config(table, address, num_workers=18, batch_size=18))


def test_a_token_that_workers_do_not_see_is_told_before_the_run_starts(
    address: str, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from student_client.cluster import check_token  # noqa: PLC0415

    environment = {"PRECEPTOR_TOKEN": "a.0123456789abcdef"}
    config = make_config(table, address)
    check_token(config)
    # As in a job that was given it: its workers have it, too.
    ray.get(ray.remote(num_cpus=0, runtime_env={"env_vars": environment})(check_token).remote(config))
    monkeypatch.setenv("PRECEPTOR_TOKEN", environment["PRECEPTOR_TOKEN"])
    with pytest.raises(ValueError, match="PRECEPTOR_TOKEN: workers at RAY_ADDRESS do not see it"):
        check_token(config)
    teacher = {"address": address, "options": {"token_file": "a.token"}}
    check_token(make_config(table, address, teacher=teacher))


def test_room_for_the_workers_is_waited_for_so_long_and_no_longer(address: str, table: Path) -> None:
    from student_client.train import TrainError  # noqa: PLC0415

    needs = {"num_workers": 2, "cpus_per_worker": 5, "start_timeout_s": 1, "max_failures": 0}
    with pytest.raises(TrainError, match=r"timed out after 1\.0 seconds waiting for 2 workers"):
        trained(table, address, "roomless", **needs)


def test_a_teacher_that_leaves_in_mid_run_is_told_as_such_and_the_run_goes_on_later(
    address: str, table: Path, tmp_path: Path
) -> None:
    from student_client.train import train  # noqa: PLC0415

    config = row_config(tmp_path)
    teacher = load_teacher(config, torch.device("cpu"), torch.float32)
    server = ToyServer(teacher, config)
    server.start()
    options = {"connect_timeout_s": 1, "answer_timeout_s": 1, "deadline_s": 2}
    run = make_config(
        table,
        server.address,
        name="leaving",
        teacher={"address": server.address, "options": options},
        log_every_steps=1,
        max_failures=0,
    )
    told: list[dict[str, Any]] = []

    def leave_once(line: dict[str, Any]) -> None:
        if not told:
            server.close()
        told.append(line)

    with pytest.raises(TeacherUnavailableError, match="run leaving"):
        train(run, on_progress=leave_once)
    message = "another process trains this run"
    with folder_lock(run.folder, "not now"), pytest.raises(FolderLockedError, match=message):
        train(run, checked=True)
    back = run.model_copy(update={"teacher": TeacherConfig(address=address)})
    undisturbed = train(back.model_copy(update={"name": "never-left"}))
    assert train(back).facts["num_steps"] == undisturbed.facts["num_steps"]
    assert worst_difference(last_state(back.folder), last_state(undisturbed.folder)) <= 1e-5
