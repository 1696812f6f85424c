"""Spans as a file has them, for tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["SpanLine", "by_id", "children", "spans_in"]


@dataclass(frozen=True)
class SpanLine:
    """One line of a file of spans."""

    name: str
    trace: str
    id: str
    parent: str | None
    start_s: float
    end_s: float
    kind: str
    status: dict[str, str]
    attributes: dict[str, Any]
    service: str

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


def spans_in(*paths: Path) -> list[SpanLine]:
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [
        SpanLine(
            name=line["name"].removeprefix("preceptor."),
            trace=line["context"]["trace_id"],
            id=line["context"]["span_id"],
            parent=line["parent_id"],
            start_s=datetime.fromisoformat(line["start_time"]).timestamp(),
            end_s=datetime.fromisoformat(line["end_time"]).timestamp(),
            kind=line["kind"].removeprefix("SpanKind."),
            status=line["status"],
            attributes={name.removeprefix("preceptor."): value for name, value in line["attributes"].items()},
            service=line["resource"]["attributes"]["service.name"],
        )
        for line in lines
    ]


def by_id(spans: Iterable[SpanLine]) -> dict[str | None, SpanLine]:
    return {span.id: span for span in spans}


def children(spans: Iterable[SpanLine], parent: SpanLine) -> list[SpanLine]:
    return [span for span in spans if span.parent == parent.id]
