"""A fleet's decisions, with jobs that end as a test says; real jobs are in test_fleet_serve.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from preceptor.cli import EXIT_BUSY
from student_client.fleet import Fleet
from student_client.fleet_jobs import JobServerError
from student_client.fleet_state import FleetFiles, RunProgress
from student_client.fleet_table import facts, fleet_table, line
from student_client.locks import FolderLockedError
from student_client.records import METRICS_FILE, RESULT_FILE, MetricsFile
from tests.toy_jobs import Cluster, fleet_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def states(fleet: Fleet) -> dict[str, str]:
    return {each.name: each.state.state for each in fleet.views()}


def test_no_more_students_run_than_is_allowed_and_each_gets_its_turn(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, parallelism=2))
    fleet = Fleet(cluster.config, cluster)
    fleet.tick()
    assert cluster.running == ["a", "b"]
    cluster.end("a")
    fleet.tick()
    assert cluster.running == ["b", "c"]
    assert states(fleet) == {"a": "done", "b": "running", "c": "running"}


@pytest.mark.parametrize("exit_code", [1, 2])
def test_a_student_that_says_why_it_failed_is_not_tried_again_and_stops_nobody(
    tmp_path: Path, exit_code: int
) -> None:
    cluster = Cluster(fleet_of(tmp_path, parallelism=1))
    fleet = Fleet(cluster.config, cluster)
    fleet.tick()
    cluster.end("a", "failed", exit_code, "starting\nerror: data.train: got nothing\nbye")
    fleet.tick()
    assert states(fleet) == {"a": "failed", "b": "running", "c": "waiting"}
    assert fleet.views()[0].state.error == "data.train: got nothing"


def test_a_killed_job_is_started_again_so_many_times(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}], max_restarts=2))
    fleet = Fleet(cluster.config, cluster, fresh=True)
    for _ in range(3):
        fleet.tick()
        cluster.end("a", "failed", -9)
        fleet.tick()
    assert states(fleet) == {"a": "failed"}
    assert "exit code -9" in fleet.views()[0].state.error
    # Whichever is the first to begin deletes what was there; the others go on from the checkpoint.
    assert cluster.started == [("a", True)] * 3
    assert len(set(cluster.wishes)) == 1


def test_a_job_that_died_after_its_run_had_ended_is_done(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}]))
    fleet = Fleet(cluster.config, cluster, clock=lambda: 0.0)
    fleet.tick()
    folder = tmp_path / "out" / "a"
    folder.mkdir(parents=True)
    (folder / RESULT_FILE).write_text(json.dumps({"test": 0.5}))
    cluster.end("a", "failed", -9)
    fleet.tick()
    assert states(fleet) == {"a": "done"}
    assert fleet.views()[0].progress.test == 0.5


def test_another_process_goes_on_where_a_killed_one_stopped(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, parallelism=2))
    Fleet(cluster.config, cluster).tick()
    second = Fleet(cluster.config, cluster)
    second.tick()
    assert len(cluster.started) == 2  # those that run are watched, not started twice
    cluster.end("a")
    cluster.jobs = {number: job for number, job in cluster.jobs.items() if "-b-" not in number}
    second.tick()
    assert states(second) == {"a": "done", "b": "running", "c": "running"}
    assert cluster.started[2:] == [("b", False), ("c", False)]
    third = Fleet(cluster.config, cluster)
    assert states(third)["a"] == "done"


def test_a_changed_config_replaces_what_was_trained_only_when_asked(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}]))
    fleet = Fleet(cluster.config, cluster)
    fleet.tick()
    cluster.end("a", "failed", 1)
    fleet.tick()
    changed = fleet_of(tmp_path, students=[{"name": "a", "epochs": 3}])
    assert states(Fleet(changed, cluster)) == {"a": "waiting"}  # nothing was trained: nothing is lost
    (changed.runs[0].folder / "checkpoint_1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"students a: their configs have changed .* --again a replaces"):
        Fleet(changed, cluster).run()
    assert states(Fleet(cluster.config, cluster)) == {"a": "failed"}
    assert run_to_end(Fleet(changed, cluster, again=["a"]), lambda _: cluster.end("a"))
    assert cluster.started == [("a", False), ("a", True)]


def test_a_run_that_another_process_still_has_is_tried_again(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}]))
    fleet = Fleet(cluster.config, cluster)
    fleet.tick()
    cluster.end("a", "failed", EXIT_BUSY)
    fleet.tick()
    assert states(fleet) == {"a": "running"}


def test_stopped_and_failed_students_are_resumed_when_asked(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, parallelism=2))
    fleet = Fleet(cluster.config, cluster)
    fleet.tick()
    files = FleetFiles(cluster.config.folder)
    for name in ("a", "c"):
        files.ask_to_stop(name)
    cluster.end("a", "stopped", None)
    cluster.end("b", "failed", 1)
    fleet.tick()
    assert states(fleet) == {"a": "stopped", "b": "failed", "c": "stopped"}
    fleet.resume()
    fleet.tick()
    assert cluster.running == ["a", "b"]


def run_to_end(fleet: Fleet, sleep: Callable[[float], None]) -> bool:
    fleet._sleep = sleep
    return fleet.run()


def test_a_server_that_is_away_for_a_while_is_waited_for(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}]))
    now = [0.0]
    fleet = Fleet(cluster.config, cluster, clock=lambda: now[0])

    def come_and_go(_seconds: float) -> None:
        now[0] += 40.0
        cluster.is_away = now[0] < 100.0
        if not cluster.is_away:
            cluster.end("a")

    assert run_to_end(fleet, come_and_go)

    def stay_away(_seconds: float) -> None:
        now[0] += 50.0

    cluster.is_away = True
    again = Fleet(fleet_of(tmp_path, students=[{"name": "x"}]), cluster, clock=lambda: now[0])
    with pytest.raises(JobServerError):
        run_to_end(again, stay_away)


def test_a_refused_job_says_why_and_is_still_to_be_fresh(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}], max_restarts=1))
    fleet = Fleet(cluster.config, cluster, fresh=True)
    cluster.refusal = "pip: no such package"
    fleet.tick()
    assert (states(fleet), fleet.views()[0].state.error) == ({"a": "waiting"}, "pip: no such package")
    cluster.refusal = ""
    fleet.tick()
    assert cluster.started == [("a", True)]
    cluster.refusal = "no"
    cluster.end("a", "failed", -9)
    fleet.tick()
    assert states(fleet) == {"a": "failed"}


def test_jobs_that_ended_with_the_ray_of_an_earlier_process_cost_no_attempt(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}], max_restarts=0))
    for _ in range(4):
        fleet = Fleet(cluster.config, cluster)
        fleet.tick()
        cluster.jobs.clear()
    assert states(fleet) == {"a": "running"}


def test_a_fresh_start_ends_the_jobs_before_it(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}]))
    Fleet(cluster.config, cluster).tick()
    (earlier,) = cluster.jobs
    fleet = Fleet(cluster.config, cluster, fresh=True)
    assert run_to_end(fleet, lambda _: cluster.end("a"))
    assert cluster.jobs[earlier].status == "stopped"
    assert cluster.started == [("a", False), ("a", True)]


def test_only_one_process_runs_a_fleet(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path))
    with FleetFiles(cluster.config.folder).lock(), pytest.raises(FolderLockedError, match="another process"):
        Fleet(cluster.config, cluster).run()


def test_the_table_tells_how_far_each_is(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path))
    fleet = Fleet(cluster.config, cluster)
    fleet.tick()
    file = MetricsFile(tmp_path / "out" / "a")
    where = {"step": 20, "num_steps": 80, "losses": {"loss": 0.25}, "waiting_share": 0.5}
    file.write({"kind": "steps", "examples_per_s": 321.4, **where})
    file.write({"kind": "epoch", "metric": "rmse", "valid": 0.875, **where})
    cluster.end("b", "failed", 1, "error: [odd] text")
    fleet.tick()
    console = Console(width=80, record=True)
    console.print(fleet_table("test", fleet.views()))
    text = console.export_text()
    for shown in ("20/80", "0.250", "0.875", "321", "50%", "failed", "[odd] text", "0 of 3 done"):
        assert shown in text
    assert line(fleet.views()[1]) == "b: failed ([odd] text)"
    assert facts(fleet.views()[0])["valid"] == 0.875


def test_progress_of_a_run_that_was_started_afresh_is_read_anew(tmp_path: Path) -> None:
    progress = RunProgress(tmp_path)
    file = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        file.write({"kind": "steps", "step": step, "num_steps": 9, "losses": {"loss": 1.0}})
    assert progress.read().step == 3
    (tmp_path / METRICS_FILE).unlink()
    file.write({"kind": "steps", "step": 1, "num_steps": 9, "losses": {"loss": 1.0}})
    assert progress.read().step == 1


def test_a_job_whose_acceptance_was_not_heard_of_is_found_not_started_twice(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}]))
    fleet = Fleet(cluster.config, cluster, fresh=True)
    cluster.loses_answer = True
    with pytest.raises(JobServerError):
        fleet.tick()
    cluster.loses_answer = False
    for each in (fleet, Fleet(cluster.config, cluster)):
        each.tick()
    assert cluster.started == [("a", True)]
    cluster.end("a", "failed", -9)
    fleet.tick()
    fleet.tick()
    assert cluster.started == [("a", True)] * 2
    assert len(set(cluster.wishes)) == 1


def test_a_job_that_was_never_taken_is_started_and_costs_no_attempt(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}], max_restarts=0))
    fleet = Fleet(cluster.config, cluster, fresh=True)
    cluster.is_away = True
    for _ in range(3):
        with pytest.raises(JobServerError):
            fleet.tick()
    cluster.is_away = False
    fleet.tick()
    fleet.tick()
    assert cluster.started == [("a", True)]
    assert fleet.views()[0].state.attempts == 1


def test_whoever_runs_the_fleet_stops_the_students_that_others_ask_it_to(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, parallelism=1))
    fleet = Fleet(cluster.config, cluster)
    fleet.tick()
    FleetFiles(cluster.config.folder).ask_to_stop("a")
    fleet.tick()
    fleet.tick()
    assert states(fleet) == {"a": "stopped", "b": "running", "c": "waiting"}
    assert not FleetFiles(cluster.config.folder).is_asked_to_stop("a")


def test_a_fresh_start_is_not_held_up_by_an_earlier_stop(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}]))
    FleetFiles(cluster.config.folder).ask_to_stop("a")
    fleet = Fleet(cluster.config, cluster, fresh=True)
    assert run_to_end(fleet, lambda _: cluster.end("a"))


def test_logs_outlive_the_server(tmp_path: Path) -> None:
    cluster = Cluster(fleet_of(tmp_path, students=[{"name": "a"}]))
    fleet = Fleet(cluster.config, cluster)
    fleet.tick()
    cluster.end("a", printed="all is well")
    fleet.tick()
    assert FleetFiles(cluster.config.folder).log("a").read_text() == "all is well"
