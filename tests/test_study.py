"""A study's cells in real worker processes, against a real teacher: what is finished stays so."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from student_client.locks import FolderLockedError, folder_lock
from student_client.study_cells import cells_of
from student_client.study_config import TaskSource
from student_client.study_results import RESULTS_FILE, StudyResults, TeacherFacts, read_lines
from student_client.study_runner import Study, time_left_s
from student_client.study_worker import Job, run_job
from tests.test_train_run import row_server
from tests.toy_study import line_of, study_of, write_study

if TYPE_CHECKING:
    from student_client.study_config import StudyConfig
    from student_client.study_runner import StudyState
    from tests.toy_server import ToyServer

__all__ = ["row_server"]

PATIENCE_S = 60.0
FORGETFUL = "tests.toy_study:forgetful"
COMPARE = "import typer; from student_client.compare_cli import compare; typer.run(compare)"


def taught(address: str, **changes: Any) -> dict[str, Any]:
    """What makes the toy study one with a teacher."""
    return {
        "teachers": {"wise": {"address": f"preceptor://{address}"}},
        "tasks": {"parity": {"make": "tests.toy_study:parity", "teachers": {"default": "wise"}}},
        "methods": {
            "none": {"losses": {"task": 1}},
            "talking": {"losses": {"task": 1, "interact": 1, "grounded": 1, "kd": 0.5}},
        },
        "seeds": [0],
        **changes,
    }


def run(config: StudyConfig, **only: list[str]) -> StudyState:
    return Study(config, cells_of(config, only)).run()


def lines_of(config: StudyConfig) -> list[dict[str, Any]]:
    return read_lines(config.folder / RESULTS_FILE)


def test_each_cell_is_a_line_with_what_came_of_it_and_what_it_cost(
    tmp_path: Path, row_server: ToyServer
) -> None:
    config = study_of(tmp_path, **taught(row_server.address))
    state = run(config)
    assert (state.num_done, state.num_cells, state.failures) == (2, 2, [])
    none, talking = lines_of(config)
    assert (none["method"], talking["method"]) == ("none", "talking")
    assert talking["metric"] == "accuracy"
    assert 0 <= talking["test"] <= 1
    assert (none["num_train"], talking["num_train"]) == (
        40,
        56,
    )  # who asks a teacher has the rows without labels
    assert talking["num_steps"] == 2 * 4
    assert talking["teacher_name"] == "rows"
    assert talking["teacher_parameters"] > talking["student_parameters"] > 0
    assert talking["student_ms_per_example"] > 0
    assert "torch" in talking["versions"]
    cost = talking["teacher"]
    # A step has an exchange, its gradients and an observation; the next batch may be read ahead.
    assert 3 * 8 <= cost["turns"] <= 4 * 8
    assert cost["tokens"] >= 2 * 80
    assert min(cost["bytes_sent"], cost["bytes_received"]) > 2 * 80 * 4 * 4
    assert 0 < cost["compute_s"] < talking["wall_s"]
    assert set(none["teacher"].values()) == {0}


def test_a_finished_cell_is_not_run_again_and_its_tables_are_made_once(tmp_path: Path) -> None:
    config = study_of(tmp_path, parallelism=3)
    assert run(config, seed=["0"]).num_done == 4
    first = lines_of(config)
    assert run(config).num_done == 8
    lines = lines_of(config)
    assert lines[:4] == first
    assert {line["seed"] for line in lines[4:]} == {1}
    made = (config.folder / "data" / "made.txt").read_text().splitlines()
    assert sorted(made) == ["10 0", "10 1", "None 0", "None 1"]
    study = Study(config, cells_of(config))
    assert [line["key"] for line in study.lines()] == [cell.key("") for cell in cells_of(config)]


def finish(config: StudyConfig) -> list[dict[str, Any]]:
    """Writes down that all cells are finished."""
    results = StudyResults(config.folder)
    for cell in cells_of(config):
        results.add({**line_of("", 0.5, num_steps=99), **cell.coordinates, "key": cell.key("")})
    return results.lines


def test_a_cell_whose_config_changed_is_run_again_and_the_others_are_not(tmp_path: Path) -> None:
    finish(study_of(tmp_path, seeds=[0]))
    changed = study_of(tmp_path, seeds=[0], methods={"none": {}, "slow": {"epochs": 1}})
    assert [line["method"] for line in Study(changed, cells_of(changed)).lines()] == ["none", "none"]
    assert run(changed).num_done == 4
    assert [line["num_steps"] for line in lines_of(changed)] == [99, 99, 99, 99, 1, 3]


def test_a_cell_under_another_name_is_written_down_and_not_run(tmp_path: Path) -> None:
    old = finish(study_of(tmp_path, seeds=[0], methods={"none": {}}))
    renamed = study_of(tmp_path, seeds=[0], methods={"alone": {}})
    study = Study(renamed, cells_of(renamed))
    assert study.open_cells() == []
    assert [line["method"] for line in study.lines()] == ["alone", "alone"]
    assert lines_of(renamed) == old  # who only looks writes nothing
    for _ in range(2):
        assert run(renamed).num_done == 2
        assert lines_of(renamed) == [*old, *({**line, "method": "alone"} for line in old)]


def test_cells_that_differ_in_their_names_only_are_run_once(tmp_path: Path) -> None:
    source = {"make": "tests.toy_study:parity", "labels": [10]}
    config = study_of(tmp_path, tasks={"parity": source, "again": source}, methods={"none": {}}, seeds=[0])
    assert run(config).num_done == 2
    first, second = lines_of(config)
    assert (first["task"], second["task"]) == ("parity", "again")
    assert second == {**first, "task": "again"}
    assert (config.folder / "data" / "made.txt").read_text() == "10 0\n"


def test_a_cell_that_fails_or_kills_its_process_is_told_of_and_run_next_time(tmp_path: Path) -> None:
    methods = {
        "none": {},
        "broken": {"student.factory": "tests.toy_student:BrokenStudent"},
        "deadly": {"student.factory": "tests.toy_study:DyingStudent"},
    }
    tasks = {
        "parity": {"make": "tests.toy_study:parity"},
        "odd": {"make": FORGETFUL},
    }
    config = study_of(tmp_path, methods=methods, tasks=tasks, seeds=[0, 1], parallelism=2)
    state = run(config, task=["parity"])
    assert state.num_done == 2
    errors = {(cell.method, cell.seed): error for cell, error in state.failures}
    assert set(errors) == {("broken", 0), ("broken", 1), ("deadly", 0), ("deadly", 1)}
    assert "a defect of the student" in errors["broken", 0]
    assert errors["deadly", 1] == "its process died with exit code 7"
    assert len([line for line in lines_of(config) if "error" in line]) == 4
    mended = study_of(tmp_path, methods={**methods, "deadly": {"epochs": 1}}, tasks=tasks, seeds=[0, 1])
    again = run(mended, task=["parity"])
    assert {cell.method for cell, _ in again.failures} == {"broken"}
    assert again.num_done == 4
    odd = run(mended, task=["odd"], method=["none"], seed=["0"])
    assert [error for _, error in odd.failures] == [
        "ValueError: tasks.odd.make: tests.toy_study:forgetful wrote no test.csv"
    ]


def test_a_teacher_that_can_not_be_had_fails_its_cells_only(tmp_path: Path) -> None:
    options = {"teacher": {"options": {"connect_timeout_s": 1, "deadline_s": 1}}}
    base = {**study_of(tmp_path).shared_fields, **options}
    base["data"] = {"task": "classification", "features": {"ids": "int64"}}
    config = study_of(tmp_path, **taught("127.0.0.1:9", base=base))
    state = run(config)
    assert state.num_done == 1
    (failure,) = state.failures
    assert failure[0].method == "talking"
    assert "teachers.wise: no replica of" in failure[1]
    assert [line["error"] for line in lines_of(config) if line["method"] == "talking"] == [failure[1]]
    broken = taught("", base=base, teachers={"wise": {"make": "tests.toy_study:nothing"}})
    config = study_of(tmp_path, **broken)
    ((_, error),) = run(config).failures
    assert "teachers.wise: ValueError: teachers.wise.make: got 'tests.toy_study:nothing'" in error


def test_what_is_stopped_loses_no_finished_cell_and_leaves_no_process(tmp_path: Path) -> None:
    methods = {
        "none": {},
        "slow": {"student": {"factory": "tests.toy_student:SlowStudent", "kwargs": {"step_s": 60}}},
    }
    path = write_study(tmp_path, methods=methods, seeds=[0])
    results = tmp_path / "out" / "study-toy" / RESULTS_FILE
    command = [
        sys.executable,
        "-c",
        COMPARE,
        str(path),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    end_s = time.monotonic() + PATIENCE_S
    while not read_lines(results) and time.monotonic() < end_s:
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, told
    assert "the same command goes on" in told
    assert psutil.wait_procs(children, timeout=PATIENCE_S)[1] == []
    assert [line["method"] for line in read_lines(results)] == ["none"]


def test_a_study_is_run_by_one_process_at_a_time(tmp_path: Path) -> None:
    config = study_of(tmp_path)
    with folder_lock(config.folder, "taken"), pytest.raises(FolderLockedError, match="another process"):
        run(config)


def test_the_time_left_is_that_of_the_cells_most_like_those_left(tmp_path: Path) -> None:
    cells = cells_of(study_of(tmp_path))
    assert time_left_s(cells, [], 2) is None
    lines = [line_of("none", 0.5, wall_s=3.0), line_of("none", 0.5, seed=1, wall_s=5.0)]
    assert time_left_s(cells[:1], lines, 1) == 4.0
    assert time_left_s(cells, [*lines, line_of("slow", 0.5, wall_s=10.0)], 2) == (4 * 4 + 4 * 10) / 2


def test_half_a_line_of_a_killed_writer_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / RESULTS_FILE
    path.write_text(json.dumps(line_of("none", 0.5)) + '\n{"task": "pari')
    results = StudyResults(tmp_path)
    assert len(results.lines) == 1
    results.add(line_of("slow", 0.5))
    assert [line["method"] for line in read_lines(path)] == ["none", "slow"]


def test_a_job_is_the_same_in_this_process(tmp_path: Path, row_server: ToyServer) -> None:
    config = study_of(tmp_path, **taught(row_server.address))
    run(config)
    expected = lines_of(config)[1]
    teacher = TeacherFacts("rows", expected["teacher_fingerprint"], expected["teacher_parameters"])
    _, cell = cells_of(config)
    job = Job(
        cell=cell,
        key=cell.key(teacher.fingerprint),
        data_folder=tmp_path / "data",
        python_path=(),
        address=f"preceptor://{row_server.address}",
        teacher=teacher,
    )
    line = run_job(job)
    timed = ("wall_s", "student_ms_per_example", "finished_at", "teacher")
    assert {name: each for name, each in line.items() if name not in timed} == {
        name: each for name, each in expected.items() if name not in timed
    }
    assert {"train.csv", "unlabelled.csv"} <= {
        path.name for path in (tmp_path / "data" / cell.data_name).iterdir()
    }
    with pytest.raises(ValueError, match="wrote no test"):
        run_job(replace(job, cell=replace(cell, task="odd", source=TaskSource(make=FORGETFUL))))
