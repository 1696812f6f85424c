"""The study's files are ones that `preceptor compare` takes."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from student_client.config import TrainConfig
from student_client.fleet_config import merged
from student_client.study_cells import cells_of
from student_client.study_config import StudyConfig
from student_client.study_results import coordinates_of, read_lines

FOLDER = Path(__file__).parent.parent / "examples" / "study"
HEADLINE = FOLDER / "headline.yaml"
FILES = sorted(FOLDER.glob("*.yaml"))
ROLES = {"default", "random"}


def _callable(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def study(request: pytest.FixtureRequest) -> dict[str, Any]:
    content = yaml.safe_load(request.param.read_text())
    assert content["name"] == request.param.stem
    return dict(content)


def test_there_are_a_quick_study_and_the_one_that_counts() -> None:
    assert {"headline", "quick"} <= {path.stem for path in FILES}


def test_a_studys_teachers_and_tasks_take_what_it_gives_them(study: dict[str, Any]) -> None:
    for source in study["teachers"].values():
        if "make" in source:
            make = inspect.signature(_callable(source["make"]))
            make.bind(FOLDER, seed=0, **source.get("kwargs", {}))
        else:
            assert (FOLDER / source["serve"]).is_file()
    for task in study["tasks"].values():
        make = inspect.signature(_callable(task["make"]))
        make.bind(FOLDER, num_labels=1, seed=0, **task.get("kwargs", {}))
        assert set(task["teachers"]) == ROLES
        assert set(task["teachers"].values()) <= set(study["teachers"])


def test_a_studys_students_are_built_by_what_its_tasks_say(study: dict[str, Any]) -> None:
    for task in study["tasks"].values():
        student = task["set"]["student"]
        classes = {student["num_classes_kwarg"]: 3} if "num_classes_kwarg" in student else {}
        built = _callable(student["factory"])(**student.get("kwargs", {}), **classes)
        for path in (student["lower"], student["upper"]):
            built.get_submodule(path)


def test_every_cell_of_a_study_is_a_valid_run(study: dict[str, Any]) -> None:
    own = {"name": "cell", "teacher": {"address": "preceptor://127.0.0.1:1"}}
    for task in study["tasks"].values():
        for method in study["methods"].values():
            fields = {name: value for name, value in method.items() if name != "against"}
            TrainConfig.model_validate(merged(merged(merged(study["base"], task["set"]), fields), own))


@pytest.mark.parametrize(
    "study", [path for path in FILES if path.stem != "tuning"], ids=lambda path: path.stem, indirect=True
)
def test_a_study_compares_methods_that_it_has(study: dict[str, Any]) -> None:
    named = {"none", *study.get("baselines", ()), *study["controls"]} | {study.get("ours", "none")}
    assert named <= set(study["methods"])
    assert {method.get("against", "default") for method in study["methods"].values()} == ROLES


def test_the_results_that_are_committed_are_of_the_study_as_it_is_now() -> None:
    lines = read_lines(FOLDER.parents[1] / "benchmarks" / "results" / "study.jsonl")
    cells = {coordinates_of(cell.coordinates): cell for cell in cells_of(StudyConfig.load(HEADLINE))}
    changed = [
        coordinates_of(line)
        for line in lines
        if line["key"] != cells[coordinates_of(line)].key(line["teacher_fingerprint"])
    ]
    assert changed == []
    assert len({coordinates_of(line) for line in lines}) == len(lines)
    found = {(line["task"], line["labels"], line["seed"]) for line in lines if line["method"] == "lessons"}
    assert len(found) >= 4 * 2 * 5  # tasks, budgets, seeds
