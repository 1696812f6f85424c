"""The study's benchmark: what is committed is read, and can be computed again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.study import beside, main
from student_client.records import append_line
from student_client.study_cells import cells_of
from tests.toy_study import line_of, study_of, write_study

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_summary_is_of_the_newest_finished_line_of_each_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path, baselines=["none"], ours="slow")
    results = tmp_path / "study.jsonl"
    for method, test in (("none", 0.9), ("none", 0.5), ("slow", 0.7), ("slow", 0.8)):
        for seed in range(5):
            append_line(results, line_of(method, test + seed / 100, seed=seed))
    for seed in (4, 5):  # a failure hides nothing that was found before
        append_line(results, {**line_of("slow", 0.0), "seed": seed, "error": "it was too slow"})
    report = tmp_path / "report"
    options = ["--results", str(results), "--study", str(path), "--report", str(report)]
    assert main(["--summary", *options]) == 0
    told = capsys.readouterr().out
    assert "82.0 ± 0.7 (5)" in told
    facts = json.loads(told.splitlines()[-1])
    assert facts.pop("worst_deficit_se") < 0
    assert facts == {"tasks": 1, "seeds": 5, "tasks_won": 1, "random_teacher_delta_se": None}
    assert (report / "report.html").exists()


def test_without_a_finished_cell_there_is_no_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["--results", str(tmp_path / "none.jsonl"), "--study", str(write_study(tmp_path))]
    assert main(["--summary", *missing]) == 1
    assert "holds no finished cell" in capsys.readouterr().err


def test_a_rerun_computes_a_tasks_cells_anew_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path)
    results = tmp_path / "study.jsonl"
    for cell in cells_of(study_of(tmp_path)):
        append_line(results, {**line_of("none", 2.0), **cell.coordinates})
    where = ["--results", str(results), "--study", str(path), "--output", str(tmp_path / "again")]
    assert main(["--rerun", "parity", "--only", "labels=10", "--only", "seed=1", *where]) == 0
    told = capsys.readouterr()
    facts = json.loads(told.out.splitlines()[-1])
    assert facts["num_compared"] == 2
    assert facts["num_identical"] == 0
    assert 1.0 <= facts["largest_change"] <= 2.0  # an accuracy of 200 % is in no cell
    assert "200.0 (1)" in told.out
    assert "2 of 2 cells are done" in told.err
    assert (tmp_path / "again" / "study-toy" / "results.jsonl").exists()
    assert not (tmp_path / "out").exists()


def test_only_cells_that_are_written_down_are_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path)
    results = tmp_path / "study.jsonl"
    first = next(iter(cells_of(study_of(tmp_path))))
    append_line(results, {**line_of("none", 0.5), **first.coordinates})
    where = ["--results", str(results), "--study", str(path)]
    assert main(["--rerun", first.task, *where]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[-1])["num_compared"] == 1
    assert "1 of 1 cells are done" in told.err
    assert main(["--rerun", first.task, "--only", "seed=1", *where]) == 1
    assert f"holds no finished cell of {first.task} seed=1" in capsys.readouterr().err


def test_cells_that_came_out_alike_are_counted() -> None:
    before = [line_of("none", 0.5, seed=seed) for seed in range(3)]
    again = [line_of("none", 0.5), line_of("none", 0.75, seed=1), line_of("none", 0.5, seed=9)]
    grid, facts = beside(before, again)
    assert facts == {"num_compared": 2, "num_identical": 1, "largest_change": 0.25}
    assert grid.rows == (("none", "10", "50.0 ± 0.0 (2)", "62.5 ± 12.5 (2)", "0.2500"),)
