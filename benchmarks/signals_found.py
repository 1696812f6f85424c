"""Looks for what was told of a step and of a service: spans in files, metrics at Ray's port."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from services.teacher.metrics import exported_names

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Joined", "is_whole", "missing_metrics", "spans_of_a_step"]

_PATIENCE_S = 30.0  # Ray tells every 10 s, spans are written every second
_POLL_S = 0.5
_OF_A_TURN = ("preceptor.batch", "preceptor.compute", "preceptor.queue")
_ASKED = ("preceptor.exchange", "preceptor.observe", "preceptor.backward")


@dataclass(frozen=True)
class Joined:
    """What was found of a step.

    Attributes:
        num_spans: of both processes.
        is_whole: whether there is one step, all spans are its parts in its trace, and each turn that the
            student asked for has its queue, batch and computation at the teacher.
    """

    num_spans: int
    is_whole: bool


def spans_of_a_step(student: Path, teacher: Path) -> Joined:
    """Reads the spans of the one step in the student's file, and the teacher's of that trace.

    Waits until they are whole, but not for ever.
    """
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        spans = _lines(student)
        (step,) = [span for span in spans if span["name"] == "preceptor.step"]
        trace = step["context"]["trace_id"]
        spans += [span for span in _lines(teacher) if span["context"]["trace_id"] == trace]
        joined = Joined(len(spans), is_whole(step, spans))
        if joined.is_whole or time.monotonic() > deadline_s:
            return joined
        time.sleep(_POLL_S)


def is_whole(step: dict[str, Any], spans: list[dict[str, Any]]) -> bool:
    """Whether spans are one step and all of its turns; see `Joined`."""
    by_id = {span["context"]["span_id"]: span for span in spans}
    below: dict[str, Counter[str]] = {number: Counter() for number in by_id}
    for span in spans:
        above: dict[str, Any] | None = span
        while above is not None and above is not step:
            above = by_id.get(above["parent_id"])
            if above is not None:
                below[above["context"]["span_id"]][span["name"]] += 1
        if above is None or span["context"]["trace_id"] != step["context"]["trace_id"]:
            return False
    asked = [span for span in spans if span["name"] in _ASKED]
    once = Counter(dict.fromkeys(("preceptor.turn", *_OF_A_TURN), 1))
    return bool(asked) and all(below[span["context"]["span_id"]] == once for span in asked)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a file that is written to."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def missing_metrics(address: str) -> list[str]:
    """Returns the metrics that Ray's port at HOST:PORT does not tell of; waits for them, but not for ever."""
    wanted = {name for names in exported_names().values() for name in names}
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        missing = wanted - {sample.name for family in families for sample in family.samples}
        if not missing or time.monotonic() > deadline_s:
            return sorted(missing)
        time.sleep(_POLL_S)
