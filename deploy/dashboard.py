"""Writes the Grafana dashboard of `dashboard_panels`, for Grafana 11 or newer: `make charts`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.dashboard_panels import ROWS, VARIABLES, Panel

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DASHBOARD", "dashboard", "dashboard_text", "expressions"]

# Where Helm finds it; deploy/grafana/preceptor.json is a link to it.
DASHBOARD = Path(__file__).parent / "helm" / "preceptor" / "files" / "preceptor.json"
_SCHEMA = 39  # Grafana 11.0's
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_HEIGHTS = {"timeseries": 8, "bargauge": 8, "stat": 4}
_WIDTH = 24


def dashboard() -> dict[str, Any]:
    """Returns the dashboard."""
    return {
        "uid": "preceptor",
        "title": "Preceptor",
        "description": "A teacher and those who learn from it.",
        "tags": ["preceptor"],
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # the crosshair is shared
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_datasource(), *(_variable(name) for name in VARIABLES)]},
        "panels": list(_panels()),
    }


def dashboard_text() -> str:
    """Returns the file as it should be."""
    return json.dumps(dashboard(), indent=1) + "\n"


def expressions() -> Iterator[tuple[str, str]]:
    """Yields every panel's title with each expression in it."""
    for panels in ROWS.values():
        for panel in panels:
            yield from ((panel.title, query.expr) for query in panel.queries)


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }


def _variable(name: str) -> dict[str, Any]:
    metric, label = VARIABLES[name]
    query = f"label_values({metric}, {label})"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "options": [],
        "refresh": 2,  # whenever the range of time changes
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
    }


def _panels() -> Iterator[dict[str, Any]]:
    """Yields rows and panels, from left to right and from top to bottom."""
    number, y = 0, 0
    for title, panels in ROWS.items():
        number += 1
        place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        x, y = 0, y + 1
        for panel in panels:
            number += 1
            if x + panel.width > _WIDTH:
                x, y = 0, y + _HEIGHTS[panel.kind]
            place = {"x": x, "y": y, "w": panel.width, "h": _HEIGHTS[panel.kind]}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            x += panel.width
        y += _HEIGHTS[panels[-1].kind]


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "custom": {}}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "fillOpacity": 25 if panel.stacked else 0,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    else:
        defaults["color"] = {"mode": "palette-classic" if panel.kind == "bargauge" else "thresholds"}
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"color": "text", "value": None}]}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel.kind),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "instant": panel.kind != "timeseries",
                "range": panel.kind == "timeseries",
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _options(kind: str) -> dict[str, Any]:
    if kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if kind == "bargauge":
        return {
            "reduceOptions": last,
            "orientation": "horizontal",
            "displayMode": "basic",
            "showUnfilled": False,
        }
    return {
        "reduceOptions": last,
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "value",
    }


if __name__ == "__main__":
    DASHBOARD.parent.mkdir(exist_ok=True)
    DASHBOARD.write_text(dashboard_text())
