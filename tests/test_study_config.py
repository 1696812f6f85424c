"""What a study's file says, and the cells that come of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from preceptor.settings import problems
from student_client.study_cells import cells_of
from student_client.study_config import StudyConfig
from tests.toy_study import study_of

TAUGHT: dict[str, Any] = {
    "teachers": {"wise": {"address": "preceptor://127.0.0.1:9"}, "random": {"make": "a:b", "seed": 3}},
    "tasks": {
        "parity": {
            "make": "tests.toy_study:parity",
            "teachers": {"default": "wise", "fool": "random"},
            "set": {"batch_size": 4, "optimizer.lr": 0.5},
        }
    },
    "methods": {
        "none": {"losses": {"task": 1}},
        "kd": {"losses": {"kd": 1}, "optimizer.lr": 0.25},
        "fooled": {"losses": {"kd": 1}, "against": "fool"},
    },
    "seeds": [5],
}


def test_a_study_has_a_cell_for_each_combination_a_seed_after_the_other(tmp_path: Path) -> None:
    cells = cells_of(study_of(tmp_path))
    assert len(cells) == 2 * 2 * 2
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4
    assert cells[0].coordinates == {
        "task": "parity",
        "labels": 10,
        "student": "student",
        "method": "none",
        "seed": 0,
    }
    assert cells[-1].title == "parity, all labels, student, slow, seed 1"
    assert all(cell.config.seed == cell.seed for cell in cells)


def test_a_cells_config_is_base_task_student_method_in_this_order(tmp_path: Path) -> None:
    students = {"wide": {"student": {"kwargs": {"width": 12}}, "epochs": 7}}
    none, kd, fooled = cells_of(study_of(tmp_path, **TAUGHT, students=students))
    assert (none.config.batch_size, none.config.optimizer.lr, none.config.epochs) == (4, 0.5, 7)
    assert kd.config.optimizer.lr == 0.25
    assert kd.config.student.kwargs == {"width": 12}
    assert kd.config.student.lower == "blocks.0"  # of the base
    assert (none.teacher, kd.teacher, fooled.teacher) == (None, "wise", "random")
    assert none.config.teacher is None


def test_a_base_may_be_a_file_and_its_paths_hold_anywhere(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "base.yaml").write_text(
        "student: {factory: 'a:b', tokenizer: ./words}\npython_path: [code]\n"
        "data: {task: regression, features: {x: float32}}\n"
    )
    teachers = {"wise": {"serve": "t/teacher.yaml"}}
    study = study_of(tmp_path, base="other/base.yaml", teachers=teachers)
    assert study.python_path == (other / "code",)
    assert study.teachers["wise"].serve == tmp_path / "t" / "teacher.yaml"
    assert cells_of(study)[0].config.student.tokenizer == str(other / "words")
    with pytest.raises(ValueError, match=r"base: .*missing\.yaml can't be read"):
        study_of(tmp_path, base="missing.yaml")


def test_a_key_is_of_what_decides_a_cells_result(tmp_path: Path) -> None:
    def key(fingerprint: str = "f", **changes: Any) -> str:
        return cells_of(study_of(tmp_path, **{**TAUGHT, **changes}))[1].key(fingerprint)

    task = TAUGHT["tasks"]["parity"]
    same: dict[str, Any] = {
        "name": "other",
        "parallelism": 7,
        "output": str(tmp_path / "elsewhere"),
        "teachers": {"wise": {"address": "preceptor://other:1"}, "random": {"make": "a:c"}},
    }
    assert key(**same) == key()
    others = [
        key("another teacher"),
        key(seeds=[6]),
        key(methods={**TAUGHT["methods"], "kd": {"losses": {"kd": 2}}}),
        key(tasks={"parity": {**task, "labels": [3]}}),
        key(tasks={"parity": {**task, "kwargs": {"num_rows": 9}}}),
        key(tasks={"parity": {**task, "make": "tests.toy_study:forgetful"}}),
    ]
    assert len({*others, key()}) == 1 + len(others)


def test_only_some_cells_can_be_wanted(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    cells = cells_of(study, {"labels": ["all"], "seed": ["1", "0"], "method": ["slow"]})
    assert [(cell.labels, cell.seed) for cell in cells] == [(None, 0), (None, 1)]
    with pytest.raises(ValueError, match=r"only: got method \['magic'\], expected some of"):
        cells_of(study, {"method": ["magic"]})
    with pytest.raises(ValueError, match="only: got 'colour'"):
        cells_of(study, {"colour": ["red"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": ["magic"]}, r"baselines: got \['magic'\], expected some of \['none', 'slow'\]"),
        ({"ours": "magic"}, "ours: got"),
        ({"controls": ["slow"], "none": "nothing"}, "none: got"),
        ({"seeds": [1, 1]}, "seeds: got"),
        ({"teachers": {"t": {}}}, "teachers.t: serve, make, address: got none"),
        ({"teachers": {"t": {"make": "a:b", "address": "preceptor://a:1"}}}, "expected one of them"),
        ({"teachers": {"t": {"serve": "a.yaml", "seed": 1}}}, "expected with `make` only"),
        ({"tasks": {"t": {"make": "nothing"}}}, r"tasks\.t\.make"),
        ({"tasks": {"t": {"make": "a:b", "labels": [0]}}}, r"tasks\.t\.labels"),
        ({"tasks": {"t": {"make": "a:b", "teachers": {"default": "x"}}}}, r"tasks\.t\.teachers: got \['x'\]"),
        ({"tasks": {"t": {"make": "a:b", "labels": [9, None, 9]}}}, r"tasks\.t\.labels: got \[9, None, 9\]"),
        ({"methods": {"bad": {"data": None}}}, r"method bad: data"),
        ({"methods": {"bad": {"losses": {"magic": 1}}}}, r"method bad: losses\.magic"),
        ({"methods": {"kd": {"losses": {"kd": 1}}}}, "expected 'default' too, which method 'kd'"),
        ({"tasks": {"t": {"make": "a:b", "set": {"data.stream": True}}}}, r"data\.stream: got true"),
    ],
)
def test_a_wrong_study_is_refused_by_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):  # noqa: PT012 - pydantic words its own errors
        try:
            cells_of(study_of(tmp_path, **changes))
        except ValidationError as error:
            raise ValueError(problems(error)) from None


def test_the_study_of_the_page_is_valid() -> None:
    root = Path(__file__).resolve().parents[1]
    (text,) = re.findall(r"```yaml\n(.*?)```", (root / "docs/study.md").read_text(), re.DOTALL)
    study = StudyConfig.of(yaml.safe_load(text), root / "examples" / "text")
    cells = cells_of(study)
    assert len(cells) == 3 * 4 * 5
    assert [cell.teacher for cell in cells[:4]] == [None, "minilm", "minilm", "random"]
    assert [cell.takes_unlabelled for cell in cells[:4]] == [False, True, True, True]
    assert [cell.config.losses.talks for cell in cells[:4]] == [False, False, True, True]
    assert cells[2].config.talk.reading == "beside"
