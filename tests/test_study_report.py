"""Tables, figures and the page of a study."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from student_client.study_grid import as_markdown, as_rich
from student_client.study_plots import plots
from student_client.study_report import PLOTS_FOLDER, REPORT_FILE, TABLE_FILE, sentences, write_report
from student_client.study_table import grids, summary
from tests.toy_study import line_of, study_of

if TYPE_CHECKING:
    from student_client.study_config import StudyConfig

ROOT = Path(__file__).resolve().parents[1]
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "a $ method | <b>": {},
    "talking": {},
    "fooled": {"against": "random"},
}


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    tasks = {"parity": {"make": "a:b", "labels": [10, None]}, "ratings": {"make": "a:b"}}
    return study_of(
        tmp_path,
        methods=METHODS,
        tasks=tasks,
        baselines=["none", "a $ method | <b>"],
        ours="talking",
        controls=["fooled"],
        seeds=[0, 1, 2, 3, 4],
    )


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    generator = random.Random(0)
    gains = dict(zip(METHODS, (0.0, 0.1, 0.2, 0.0), strict=True))
    places = [("parity", 10, "accuracy"), ("parity", None, "accuracy"), ("ratings", None, "rmse")]
    return [
        line_of(
            method,
            0.5 + (gain if metric == "accuracy" else -gain) + generator.gauss(0, 0.01),
            task=task,
            labels=labels,
            metric=metric,
            seed=seed,
        )
        for task, labels, metric in places
        for method, gain in gains.items()
        for seed in range(5)
    ]


def test_a_table_has_means_errors_numbers_and_differences_with_intervals(
    study: StudyConfig, lines: list[dict[str, Any]]
) -> None:
    best, parity, ratings, differences, *costs = grids(study, lines)
    assert best.headings == ("task", "labels", "none", "best baseline", "talking", "paired difference")
    assert [row[:2] for row in best.rows] == [("parity", "10"), ("parity", "all"), ("ratings", "all")]
    assert all(row[3].startswith("a $ method | <b>: ") for row in best.rows)
    assert best.rows[2][-1] == differences.rows[1][2]
    assert parity.headings == ("method", "10 labels", "all labels")
    (talking,) = [row for row in parity.rows if row[0] == "talking"]
    assert re.fullmatch(r"(69|70|71)\.\d ± 0\.\d \(5\)", talking[1])
    assert "lower is better" in ratings.title
    assert re.fullmatch(r"0\.\d{3} ± 0\.\d{3} \(5\)", ratings.rows[0][1])
    assert [row[0] for row in differences.rows] == [
        "talking over none",
        "talking over a $ method | <b>",
        "fooled over none",
    ]
    assert re.fullmatch(r"\+\d+\.\d \[\+\d+\.\d, \+\d+\.\d\]\* \(10\)", differences.rows[0][1])
    assert re.fullmatch(r"\+0\.\d{3} \[\+0\.\d{3}, \+0\.\d{3}\]\* \(5\)", differences.rows[1][2])
    assert [grid.title for grid in costs] == ["parity: cost beside gain", "ratings: cost beside gain"]
    assert costs[0].rows[0] == ("none", "", "20.0", "50", "100", "25.000", "100.00")
    assert "student has 100 parameters" in costs[0].note


def test_cells_that_are_not_there_yet_leave_gaps(study: StudyConfig, lines: list[dict[str, Any]]) -> None:
    some = [line for line in lines if (line["method"], line["labels"]) != ("talking", None)]
    rows = {row[0]: row for row in grids(study, some)[1].rows}
    assert rows["talking"][2] == ""
    assert grids(study, []) == []
    assert sentences(study, []) == ["No cell is finished yet."]
    one = [line for line in lines if line["seed"] == 0]
    assert " ± " not in grids(study, one)[1].rows[0][1]
    assert all(plot.element for plot in plots(study, one))


def test_students_of_several_kinds_have_rows_of_their_own(
    study: StudyConfig, lines: list[dict[str, Any]]
) -> None:
    both = [*lines, *({**line, "student": "wide", "student_parameters": 7} for line in lines)]
    best, means, *_ = grids(study, both)
    assert [row[2] for row in best.rows] == ["student", "wide", "student", "wide", "student", "wide"]
    assert [row[0] for row in means.rows][:2] == ["none (student)", "none (wide)"]


def test_without_ours_all_methods_are_compared_with_the_baselines(
    tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    study = study_of(tmp_path, methods=METHODS, baselines=["none"])
    titles = [row[0] for row in grids(study, lines)[2].rows]
    assert titles == ["a $ method | <b> over none", "talking over none", "fooled over none"]


def test_markdown_and_the_terminal_show_all_cells(study: StudyConfig, lines: list[dict[str, Any]]) -> None:
    for grid in grids(study, lines):
        table = as_markdown(grid).splitlines()[2:]
        assert len([line for line in table if line.startswith("|")]) == 2 + len(grid.rows)
        assert as_rich(grid).row_count == len(grid.rows)
    assert r"a $ method \| <b>" in as_markdown(grids(study, lines)[0])


class Page(HTMLParser):
    """Collects what a page has."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.images: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if "id" in given:
            self.ids.append(str(given["id"]))
        if given.get("role") == "img":
            self.images.append(str(given.get("aria-label")))
        self.sources += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file_and_says_what_its_figures_show(
    study: StudyConfig, lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_report(study, lines, tmp_path)
    text = (tmp_path / REPORT_FILE).read_text()
    page = Page()
    page.feed(re.sub(r"<(\w[\w:]*)([^<>]*)/>", r"<\1\2></\1>", text))
    assert page.open == []
    assert len(page.images) == 2 * 3
    assert "talking" in page.images[0]
    assert all(source.startswith("#") for source in page.sources)
    assert {source[1:] for source in page.sources} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "<b>" not in text
    assert "@media print" in text
    assert "Run with torch 2." in text
    table = (tmp_path / TABLE_FILE).read_text()
    assert table.startswith("# Study toy\n")
    linked = re.findall(r"!\[[^]]+\]\(([^)]+)\)", table)
    assert sorted(linked) == sorted(
        f"{PLOTS_FOLDER}/{file.name}" for file in (tmp_path / PLOTS_FOLDER).iterdir()
    )
    assert len(linked) == 2 * 3
    write_report(study, lines, tmp_path / "again")
    assert (tmp_path / "again" / REPORT_FILE).read_text() == text


def test_figures_are_well_formed_and_as_wide_as_there_is_room(
    study: StudyConfig, lines: list[dict[str, Any]]
) -> None:
    for plot in plots(study, lines):
        root = ET.fromstring(plot.element)  # noqa: S314 - our own
        assert root.get("viewBox")
        assert root.get("width") is None
        assert root.get("aria-label") == f"{plot.title}. {plot.text}"
        alone = ET.fromstring(plot.file)  # noqa: S314 - our own
        assert alone.get("width")
        assert plot.title in "".join(alone.itertext())


def test_a_figure_shows_what_there_is_and_others_are_left_out(
    study: StudyConfig, lines: list[dict[str, Any]]
) -> None:
    def titles(*methods: str) -> list[str]:
        some = [line for line in lines if line["method"] in methods and line["task"] == "parity"]
        return [plot.title.removeprefix("parity: ") for plot in plots(study, some)]

    assert titles("none") == ["accuracy, % against labels"]
    assert titles("talking") == ["accuracy, % against labels"]
    assert titles("none", "talking")[1:] == ["paired differences", "cost beside gain"]
    some = [line for line in lines if line["method"] in ("none", "talking")]
    (differences, *_) = [plot for plot in plots(study, some) if plot.title.endswith("differences")]
    assert "talking over none" in differences.text
    assert "fooled" not in differences.text


def test_figures_of_before_and_of_names_alike_do_not_mix(
    study: StudyConfig, lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_report(study, lines, tmp_path)
    renamed = [
        {**line, "task": {"parity": "a [task]", "ratings": "A [task]"}[line["task"]]} for line in lines
    ]
    write_report(study, renamed, tmp_path)
    files = sorted(path.name for path in (tmp_path / PLOTS_FOLDER).iterdir())
    assert len(files) == 2 * 3
    assert not any("parity" in name for name in files)
    table = (tmp_path / TABLE_FILE).read_text()
    assert rf"![A \[task\]: RMSE against labels]({PLOTS_FOLDER}/" in table


def test_a_summary_says_what_a_study_comes_to(study: StudyConfig, lines: list[dict[str, Any]]) -> None:
    found = summary(study, lines)
    assert found["tasks"] == found["tasks_won"] == 2
    assert found["seeds"] == 5
    assert found["worst_deficit_se"] < 0
    assert 0 <= found["random_teacher_delta_se"] < 5
    first, second, third = sentences(study, lines)
    assert first == "60 cells: 2 tasks, 5 seeds."
    assert "on 2 of 2 tasks. It is never behind" in second
    assert "teacher that knows nothing" in third


def test_nothing_is_said_of_methods_that_have_no_pairs_yet(
    study: StudyConfig, lines: list[dict[str, Any]]
) -> None:
    unheard = [line for line in lines if line["method"] not in ("talking", "fooled")]
    assert sentences(study, unheard) == ["30 cells: 2 tasks, 5 seeds."]
    one = [line for line in lines if line["seed"] == 0]
    assert not any("behind" in sentence for sentence in sentences(study, one))
    found = summary(study, [line for line in one if line["labels"] == 10])
    assert (found["worst_deficit_se"], found["random_teacher_delta_se"]) == (None, None)
