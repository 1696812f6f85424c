"""A fleet's config and commands."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from typer.testing import CliRunner

from preceptor.cli import build
from student_client.fleet import Fleet, view
from student_client.fleet_config import FleetConfig
from student_client.fleet_state import FleetFiles
from tests.toy_jobs import STUDENT, Cluster, fleet_of

if TYPE_CHECKING:
    from pathlib import Path


def test_a_grid_makes_students_of_all_combinations(tmp_path: Path) -> None:
    config = fleet_of(tmp_path, students=[{"name": "a"}], grid={"seed": [0, 1], "optimizer.lr": [0.1, 0.01]})
    assert [run.name for run in config.runs] == [
        "a-seed-0-lr-0.1",
        "a-seed-0-lr-0.01",
        "a-seed-1-lr-0.1",
        "a-seed-1-lr-0.01",
    ]
    assert (config.runs[3].seed, config.runs[3].optimizer.lr) == (1, 0.01)


def test_students_change_nested_fields_of_a_base_file(tmp_path: Path) -> None:
    base = tmp_path / "bases"
    base.mkdir()
    (base / "run.yaml").write_text(yaml.safe_dump({"name": "unused", "epochs": 7, **STUDENT}))
    student = {"name": "a", "data.label": "kind", "student": {"kwargs": {"width": 4}}, "data.valid": "v.csv"}
    (run,) = fleet_of(tmp_path, base="bases/run.yaml", students=[student]).runs
    assert (run.epochs, run.data.label, run.student.kwargs) == (7, "kind", {"width": 4})
    assert run.data.train == str(base / "t.csv")  # of the base's folder
    assert run.data.valid == str(tmp_path / "v.csv")  # of the fleet's


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": [{"name": "a"}, {"name": "a"}]}, r"\['a'\] more than once"),
        ({"students": [{"name": "bad", "epochs": 0}]}, "student bad: epochs"),
        ({"students": [{"name": "bad", "data.colour": 1}]}, r"student bad: data\.colour"),
        ({"students": [{}]}, "one without a name"),
        ({"students": []}, "got none"),
        ({"parallelism": 0}, "parallelism"),
    ],
)
def test_a_wrong_fleet_names_student_and_field(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fleet_of(tmp_path, **changes)


@pytest.fixture
def fleet_file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    content = {"name": "test", "output": str(tmp_path / "out"), "base": STUDENT, "students": [{"name": "a"}]}
    path.write_text(yaml.safe_dump(content))
    return path


def invoke(*words: str) -> Any:
    return CliRunner().invoke(build(), ["fleet", *words])


def test_status_needs_no_server(fleet_file: Path) -> None:
    config = FleetConfig.load(fleet_file)
    Fleet(config, Cluster(config)).tick()
    done = invoke("status", str(fleet_file), "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["students"][0]["state"] == "running"
    assert view(config)[0].state.attempts == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("logs", "FLEET", "nobody"), "got 'nobody', expected one of a"),
        (("logs", "FLEET", "a"), "was not started yet"),
        (("missing.yaml",), "can't be read"),
        (("status", "missing.yaml"), "can't be read"),
    ],
)
def test_wrong_words_are_told(
    fleet_file: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = invoke(*[str(fleet_file) if word == "FLEET" else word for word in words])
    assert done.exit_code in (1, 2)
    assert message in done.output


def test_a_server_that_does_not_answer_is_an_error(fleet_file: Path) -> None:
    done = invoke(str(fleet_file), "--address", "http://127.0.0.1:1")
    assert done.exit_code == 1
    assert "job server http://127.0.0.1:1" in done.output


def test_a_dotted_name_may_hold_fields(tmp_path: Path) -> None:
    students = [{"name": "a", "student.kwargs": {"dim": 8}}]
    (run,) = FleetConfig.of({"name": "f", "base": STUDENT, "students": students}, tmp_path).runs
    assert run.student.kwargs == {"dim": 8}


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"base: .*missing\.yaml can't be read"):
        FleetConfig.of({"name": "f", "base": "missing.yaml", "students": [{"name": "a"}]}, tmp_path)


def test_stop_and_logs_need_no_server_where_none_is_left(fleet_file: Path) -> None:
    config = FleetConfig.load(fleet_file)
    cluster = Cluster(config)
    fleet = Fleet(config, cluster)
    fleet.tick()
    cluster.end("a", "failed", -9, printed="the last words")
    fleet.tick()
    assert invoke("stop", str(fleet_file)).exit_code == 2  # it runs again, somewhere
    cluster.end("a", printed="the very last words")
    fleet.tick()
    assert invoke("stop", str(fleet_file)).exit_code == 0
    assert "the very last words" in invoke("logs", str(fleet_file), "a").stdout
    with FleetFiles(config.folder).lock():
        done = invoke("stop", str(fleet_file), "a")
    assert "asked whoever runs the fleet to stop a" in done.output


def test_a_token_that_jobs_elsewhere_do_not_see_is_told_before_anything_is_started(
    fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_TOKEN", "a.0123456789abcdef")
    content = yaml.safe_load(fleet_file.read_text())

    def said(**changes: Any) -> str:
        fleet_file.write_text(yaml.safe_dump({**content, **changes}))
        done = invoke(str(fleet_file), "--address", "http://127.0.0.1:1")
        return f"{done.exit_code} {' '.join(done.output.split())}"

    teacher: dict[str, Any] = {"address": "preceptors://teacher.example:1"}
    guarded = {**STUDENT, "teacher": teacher}
    assert said(base=guarded).startswith("2 error: PRECEPTOR_TOKEN: the jobs of a do not see it")
    for changes in (
        {"base": STUDENT},  # talks with nobody
        {"base": guarded, "job": {"env_vars": {"PRECEPTOR_TOKEN": "a.0123456789abcdef"}}},
        {"base": {**STUDENT, "teacher": {**teacher, "options": {"token_file": "a.token"}}}},
    ):
        assert re.match("1 .*error: job server http://127.0.0.1:1", said(**changes))
