"""The dashboard shows all that is exported, and nothing else; `test_signals_serve.py` asks Prometheus."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from deploy.dashboard import DASHBOARD, dashboard, dashboard_text, expressions
from deploy.dashboard_panels import ROWS, VARIABLES
from services.teacher.metrics import METRICS, exported_names
from tests.charts import ROOT

NAME = re.compile(r"\b(?:ray|preceptor)_\w+")
LABEL = re.compile(r"(\w+)=~?\"")
BY = re.compile(r"\bby \(([^)]*)\)")
GRAFANAS = {"$__rate_interval", "$__range", *(f"${name}" for name in VARIABLES)}


def asked() -> dict[str, str]:
    """All that Prometheus is asked, by where it is."""
    found = {f"{title} {number}": expr for number, (title, expr) in enumerate(expressions())}
    return found | {f"${name}": series for name, (series, _) in VARIABLES.items()}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard()["panels"]
    return found


def labels_of(name: str) -> set[str]:
    """The labels of ours that a name at Prometheus has."""
    (metric,) = (each for each in METRICS if name in exported_names()[each.name])
    return {*metric.tag_keys, *(("le",) if name.endswith("_bucket") else ())}


def test_the_file_is_the_one_that_is_made() -> None:
    assert DASHBOARD.read_text() == dashboard_text(), "run `make charts`"
    link = ROOT / "deploy/grafana/preceptor.json"
    assert link.resolve() == DASHBOARD.resolve()
    assert json.loads(link.read_text())["uid"] == "preceptor"


def test_all_that_is_exported_is_on_it_and_nothing_else() -> None:
    known = {name: metric for metric, names in exported_names().items() for name in names}
    used = {name for expr in asked().values() for name in NAME.findall(expr)}
    assert used <= known.keys()
    assert {known[name] for name in used} == {metric.name for metric in METRICS}


@pytest.mark.parametrize("expr", asked().values(), ids=asked().keys())
def test_every_label_is_one_of_its_metric(expr: str) -> None:
    has = [labels_of(name) for name in NAME.findall(expr)]
    chosen = {*LABEL.findall(expr)}
    grouped = {label.strip() for labels in BY.findall(expr) for label in labels.split(",")}
    assert all(chosen - {"source"} | grouped <= each for each in has)
    assert {*re.findall(r"\$\w+", expr)} <= GRAFANAS


@pytest.mark.parametrize("expr", [expr for _, expr in expressions()])
def test_counters_are_shown_by_their_growth(expr: str) -> None:
    # Ray's agent goes on telling what a replica that is gone had counted.
    names = [name for name in NAME.findall(expr) if name.endswith(("_total", "_bucket", "_count", "_sum"))]
    assert len(re.findall(r"\b(?:rate|increase)\(", expr)) == len(names)


def test_variables_take_their_values_from_labels_that_are_there() -> None:
    for series, label in VARIABLES.values():
        assert label in labels_of(series.partition("{")[0])


def test_panels_neither_overlap_nor_share_a_number_or_title() -> None:
    cells = [
        (x, y)
        for each in panels()
        for place in (each["gridPos"],)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))
    numbers = [each["id"] for each in panels()]
    assert len(numbers) == len(set(numbers))
    for row in ROWS.values():
        assert len({panel.title for panel in row}) == len(row)
        assert all(panel.description and panel.queries for panel in row)
