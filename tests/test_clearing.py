"""An earlier run is deleted when that is wished, once, whatever becomes of the job that was to do it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from student_client.clearing import clear_run
from student_client.fleet import Fleet
from student_client.fleet_state import FleetFiles
from student_client.locks import LOCK_FILE, folder_lock
from student_client.records import CONFIG_FILE
from tests.test_cli import run
from tests.test_train_run import make_config, table
from tests.toy_jobs import Cluster, fleet_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["table"]


def trained(folder: Path) -> Path:
    """Leaves what a run might and returns its checkpoint."""
    (folder / "checkpoint_1").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").touch()
    return folder / "checkpoint_1"


def test_a_run_is_cleared_once_for_each_wish(tmp_path: Path) -> None:
    for wish, remains in (("", True), ("one", False), ("one", True), ("two", False), ("two", True)):
        checkpoint = trained(tmp_path)
        clear_run(tmp_path, fresh=wish)
        assert checkpoint.exists() == remains
    with folder_lock(tmp_path, "held"):
        clear_run(tmp_path, fresh=True)
        assert not checkpoint.exists()
        assert (tmp_path / LOCK_FILE).exists()
    checkpoint = trained(tmp_path)
    clear_run(tmp_path, fresh="two")  # what a person has begun meanwhile is not what was to be deleted
    assert checkpoint.exists()


def test_a_run_is_deleted_once_also_where_jobs_are_lost_before_they_begin_and_later(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}], max_restarts=3))
    folder = cluster.config.runs[0].folder
    earlier = trained(folder)
    fleet = Fleet(cluster.config, cluster, fresh=True)
    fleet.tick()
    fleet.tick()  # the job is there, and has not begun
    cluster.end("a", "failed", None)
    fleet.tick()
    fleet.tick()
    clear_run(folder, fresh=cluster.wishes[1])  # the second one begins
    assert not earlier.exists()
    checkpoint = trained(folder)
    cluster.end("a", "failed", -9)
    fleet = Fleet(cluster.config, cluster)  # the loop was killed, too
    fleet.tick()
    fleet.tick()
    clear_run(folder, fresh=cluster.wishes[2])
    assert checkpoint.exists()
    cluster.end("a")
    fleet.tick()
    assert not FleetFiles(cluster.config.folder).load()["a"].fresh


def test_a_stop_that_was_asked_for_holds_when_the_loop_is_killed(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}]))
    Fleet(cluster.config, cluster, fresh=True).tick()
    FleetFiles(cluster.config.folder).ask_to_stop("a")
    assert not Fleet(cluster.config, cluster, sleep=lambda _: None).run()
    assert FleetFiles(cluster.config.folder).load()["a"].state == "stopped"


def test_the_command_of_a_job_is_to_delete_another_configs_run(table: Path) -> None:
    config = make_config(table, None, student={"factory": "nowhere:x"})
    trained(config.folder)
    earlier = config.model_copy(update={"epochs": 99})
    (config.folder / CONFIG_FILE).write_text(yaml.safe_dump(earlier.model_dump(mode="json")))
    path = table.parent / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    refused = run("train", str(path))
    assert "holds checkpoints of another config" in refused.output
    begun = run("train", str(path), "--fresh-once", "wish")
    assert "student.factory" in begun.output


@pytest.mark.parametrize(("before", "is_wish"), [(True, True), (False, False)])
def test_a_fleet_of_an_earlier_release_is_understood(tmp_path: Path, before: Any, is_wish: Any) -> None:
    files = FleetFiles(tmp_path)
    (tmp_path / "fleet.json").write_text(json.dumps({"a": {"state": "waiting", "fresh": before}}))
    wish = files.load()["a"].fresh
    assert isinstance(wish, str)
    assert bool(wish) == is_wish
