"""Ray Train's workers: several learn what one learns, and lost ones change nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks.ddp import last_state, worst_difference
from tests.test_serve import free_port, make_config, table
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def trained(table: Path, address: str, name: str, **changes: Any) -> TrainResult:
    from student_client.train import train  # noqa: PLC0415

    # 52 examples to learn from: the last batch of an epoch is smaller and odd.
    options = {"connect_timeout_s": 10, "answer_timeout_s": 10, "deadline_s": 10}
    teacher = {"address": address, "options": options}
    return train(make_config(table, address, name=name, teacher=teacher, batch_size=15, **changes))


@pytest.fixture(scope="module")
def one(address: str, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """What one worker learns without dropout, which differs between workers."""
    folder = tmp_path_factory.mktemp("one")
    path = folder / "table.csv"
    path.write_text("ids,label\n" + "".join(f"{number % 32},{number % 2}\n" for number in range(64)))
    return trained(path, address, "one", student=SILENT)


def test_two_workers_learn_what_one_learns(address: str, table: Path, one: TrainResult) -> None:
    two = trained(table, address, "two", num_workers=2, student=SILENT)
    assert worst_difference(last_state(two.folder), last_state(one.folder)) <= 1e-5
    assert two.facts["test"] == one.facts["test"]


def test_a_lost_worker_resumes_exactly_from_its_checkpoint(address: str, table: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415

    marker = tmp_path / "crashed"
    crashing = {
        "factory": "tests.toy_student:CrashingStudent",
        # Step 10 is in the third of four epochs; the last checkpoint is of step 9.
        "kwargs": {"marker": str(marker), "at_step": 10},
    }
    disturbed = trained(table, address, "crash", student=crashing, checkpoint_every_steps=3)
    assert marker.exists()
    undisturbed = trained(table, address, "calm")
    ours = load_file(disturbed.folder / "student.safetensors")
    theirs = load_file(undisturbed.folder / "student.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_elastic_run_that_loses_a_worker_learns_what_one_learns(
    address: str, table: Path, tmp_path: Path, one: TrainResult
) -> None:
    marker = tmp_path / "crashed"
    crashing = {
        "factory": "tests.toy_student:CrashingStudent",
        "kwargs": {"marker": str(marker), "at_step": 10, "dropout": 0.0},
    }
    elastic = trained(table, address, "elastic", student=crashing, num_workers=[1, 2])
    assert marker.exists()
    assert worst_difference(last_state(elastic.folder), last_state(one.folder)) <= 1e-5


def test_a_worker_that_hangs_is_not_waited_for_for_ever(
    address: str, table: Path, tmp_path: Path, one: TrainResult
) -> None:
    marker = tmp_path / "hung"
    hanging = {
        "factory": "tests.toy_student:HangingStudent",
        "kwargs": {"marker": str(marker), "at_step": 10},
    }
    run = trained(table, address, "hang", student=hanging, num_workers=2, peer_timeout_s=12)
    assert marker.exists()
    assert worst_difference(last_state(run.folder), last_state(one.folder)) <= 1e-5
