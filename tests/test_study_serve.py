"""A study that serves its own teachers, one after the other, by `preceptor serve` on a real Ray."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from student_client.study_cells import cells_of
from student_client.study_results import RESULTS_FILE, read_lines
from student_client.study_runner import Study
from student_client.study_teachers import TeacherFailedError, served
from tests.test_study import COMPARE
from tests.toy_study import make_teacher, study_of, write_study

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.serve

PATIENCE_S = 180.0


def test_teachers_are_served_while_their_cells_run_and_not_again_for_finished_ones(tmp_path: Path) -> None:
    make_teacher(tmp_path)
    teachers = {
        "here": {"serve": "teacher.yaml"},
        "made": {"make": "tests.toy_study:make_teacher", "kwargs": {"scale": 0.5}},
    }
    tasks = {
        "parity": {
            "make": "tests.toy_study:parity",
            "teachers": {"default": "here", "random": "made"},
        }
    }
    losses = {"task": 1, "interact": 1, "grounded": 1}
    methods = {"none": {}, "talking": {"losses": losses}, "fooled": {"losses": losses, "against": "random"}}
    config = study_of(tmp_path, teachers=teachers, tasks=tasks, methods=methods, seeds=[0, 1])
    doing: list[str] = []
    before = {process.pid for process in psutil.process_iter()}
    state = Study(config, cells_of(config)).run(lambda state: doing.append(state.doing))
    assert state.failures == []
    assert state.num_done == 6
    lines = read_lines(config.folder / RESULTS_FILE)
    prints = {line["method"]: line["teacher_fingerprint"] for line in lines}
    assert len(set(prints.values())) == 3
    assert all((line["teacher"]["turns"] > 0) == (line["method"] != "none") for line in lines)
    assert {each for each in doing if each.startswith("starting")} == {
        "starting teacher here",
        "starting teacher made, made first where it is new",
    }
    left = [
        p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and "serve" in p.info["cmdline"]
    ]
    assert left == []

    doing.clear()
    again = Study(config, cells_of(config)).run(lambda state: doing.append(state.doing))
    assert again.num_done == 6
    assert set(doing) == {""}
    assert read_lines(config.folder / RESULTS_FILE) == lines

    (config.folder / "teachers.json").unlink()  # so it has to be served to know that its cells are finished
    renamed = study_of(
        tmp_path, teachers=teachers, tasks=tasks, methods={"spoken": methods["talking"]}, seeds=[0, 1]
    )
    assert Study(renamed, cells_of(renamed)).run().num_done == 2
    added = read_lines(config.folder / RESULTS_FILE)[len(lines) :]
    assert added == [{**line, "method": "spoken"} for line in lines if line["method"] == "talking"]


def test_a_teacher_ends_with_the_study_that_is_killed(tmp_path: Path) -> None:
    make_teacher(tmp_path)
    path = write_study(
        tmp_path,
        teachers={"here": {"serve": "teacher.yaml"}},
        tasks={"parity": {"make": "tests.toy_study:parity", "teachers": {"default": "here"}}},
        methods={
            "slow": {
                "student": {"factory": "tests.toy_student:SlowStudent", "kwargs": {"step_s": 0.5}},
                "losses": {"kd": 1},
                "epochs": 1000,
            }
        },
    )
    with subprocess.Popen([sys.executable, "-c", COMPARE, str(path)], stderr=subprocess.DEVNULL) as process:
        try:
            data = tmp_path / "out" / "study-toy" / "data"
            await_that(data.exists)  # the teacher is served, the cell has begun
            children = psutil.Process(process.pid).children(recursive=True)
            assert any("raylet" in child.name() for child in children)
        finally:
            process.kill()
    assert psutil.wait_procs(children, timeout=PATIENCE_S)[1] == []


def await_that(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.1)


def test_a_teacher_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "teacher.yaml").write_text(
        "name: lost\nauth: none\nmodel: {family: encoder, path: nowhere}\n"
    )
    config = study_of(tmp_path, teachers={"lost": {"serve": "teacher.yaml"}})
    with (
        pytest.raises(TeacherFailedError, match=r"teachers\.lost: it could not be served: .*nowhere"),
        served("lost", config.teachers["lost"], tmp_path),
    ):
        pass
