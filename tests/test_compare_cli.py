"""`preceptor compare`: what it runs, writes and says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typer.testing import CliRunner

from preceptor.cli import EXIT_BUSY, EXIT_USAGE
from student_client.compare_cli import compare, progress_text
from student_client.locks import folder_lock
from student_client.records import append_line
from student_client.study_cells import cells_of
from student_client.study_config import StudyConfig
from student_client.study_report import REPORT_FILE, TABLE_FILE
from student_client.study_results import RESULTS_FILE, read_lines
from student_client.study_runner import StudyState
from tests.toy_study import line_of, study_of, write_study

if TYPE_CHECKING:
    from typer.testing import Result

ROOT = Path(__file__).resolve().parents[1]


def invoke(*words: object) -> Result:
    app = typer.Typer()
    app.command()(compare)
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def test_the_command_runs_a_study_and_writes_its_report(tmp_path: Path) -> None:
    path = write_study(tmp_path, baselines=["none"], seeds=[0, 1])
    result = invoke(path, "--only", "labels=10", "--parallelism", 2, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout.splitlines()[-1])
    assert (facts["name"], facts["num_cells"], facts["num_failed"]) == ("toy", 4, 0)
    assert (facts["tasks"], facts["seeds"]) == (1, 2)
    assert "study toy: 0 of 4 cells are done" in result.stderr
    assert "study toy: 4 of 4 cells are done" in result.stderr
    folder = tmp_path / "out" / "study-toy"
    assert "10 labels" in (folder / TABLE_FILE).read_text()
    before = read_lines(folder / RESULTS_FILE)
    (folder / REPORT_FILE).unlink()
    again = invoke(path, "--report-only")
    assert again.exit_code == 0
    assert "slow over none" in again.stderr
    assert (folder / REPORT_FILE).exists()
    assert read_lines(folder / RESULTS_FILE) == before


def test_failures_are_told_at_the_end(tmp_path: Path) -> None:
    methods = {"broken": {"student.factory": "tests.toy_student:BrokenStudent"}}
    path = write_study(tmp_path, methods=methods, seeds=[0])
    result = invoke(path, "--only", "labels=all")
    assert result.exit_code == 1
    (line,) = read_lines(StudyConfig.load(path).folder / RESULTS_FILE)
    assert "toy_student.py" in line["traceback"]
    assert "failed: parity, all labels, student, broken, seed 0: RuntimeError: a defect" in result.stderr
    assert "No cell is finished yet." in result.stderr


def test_mistakes_are_told_before_anything_is_run(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    wrong = write_study(other, methods={"bad": {"epochs": 0}})
    mistakes: list[tuple[list[object], str]] = [
        ([tmp_path / "missing.yaml"], "can't be read"),
        ([wrong], "method bad: epochs"),
        ([path, "--only", "magic"], "expected NAME=VALUE"),
        ([path, "--only", "seed=9"], "only: got seed ['9']"),
    ]
    for words, message in mistakes:
        result = invoke(*words)
        assert result.exit_code == EXIT_USAGE
        assert message in result.stderr
    lost = write_study(other, tasks={"parity": {"make": "tests.toy_study:lost"}})
    assert "tasks.parity.make: got 'tests.toy_study:lost'" in invoke(lost).stderr
    assert not (tmp_path / "out").exists()


def test_the_command_s_example_is_one() -> None:
    words = str(compare.__doc__).split("Example: preceptor compare ")[1].split()
    found = cells_of(StudyConfig.load(ROOT / words[0]), {"task": [words[2].removeprefix("task=")]})
    assert found


def test_a_study_that_another_process_runs_is_left_alone(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    with folder_lock(tmp_path / "out" / "study-toy", "taken"):
        result = invoke(path)
    assert result.exit_code == EXIT_BUSY
    assert "another process runs this study" in result.stderr


def test_progress_says_what_is_left(tmp_path: Path) -> None:
    cells = cells_of(study_of(tmp_path))
    state = StudyState(num_cells=8, num_done=3, failures=[(cells[0], "why")], time_left_s=90.0)
    assert progress_text("toy", state) == "study toy: 3 of 8 cells are done, 1 failed, about 90 s left"
    state.time_left_s = 20 * 60
    assert progress_text("toy", state).endswith("about 20 min left")
    state.time_left_s = 3 * 3600
    assert progress_text("toy", state).endswith("about 3.0 h left")


def test_an_old_line_of_a_cell_stays_but_does_not_count(tmp_path: Path) -> None:
    study = study_of(tmp_path, seeds=[0])
    path = study.folder / RESULTS_FILE
    path.parent.mkdir(parents=True)
    (cell, *_) = cells_of(study)
    for test in (0.1, 0.9):
        append_line(path, {**line_of("none", test), **cell.coordinates, "key": cell.key("")})
    result = invoke(tmp_path / "study.yaml", "--report-only")
    assert result.exit_code == 0, result.exception
    assert "90.0 (1)" in (study.folder / TABLE_FILE).read_text()
    assert len(read_lines(path)) == 2
