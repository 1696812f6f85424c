"""The files of a run: their names, what decides its course, and its metrics.

Metrics are appended line by line; a reader never takes half of one for the whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from preceptor.terms import Reading
from student_client.whole_files import writing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from student_client.config import TrainConfig

__all__ = [
    "CONFIG_FILE",
    "EXAMPLE_FILE",
    "METRICS_FILE",
    "RESULT_FILE",
    "STUDENT_FACTS_FILE",
    "STUDENT_FILE",
    "MetricsFile",
    "append_line",
    "config_digest",
    "flat",
    "read_metrics",
    "read_new_lines",
]

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
STUDENT_FILE = "student.safetensors"
STUDENT_FACTS_FILE = "student.json"
EXAMPLE_FILE = "example_inputs.safetensors"


def config_digest(config: TrainConfig) -> str:
    """Returns a digest of all that decides a run's course; where it runs and how often it saves do not."""
    free = {
        "accumulate",
        "checkpoint_every_epochs",
        "checkpoint_every_steps",
        "cpus_per_worker",
        "gpus_per_worker",
        "log_every_steps",
        "max_failures",
        "num_threads",
        "num_workers",
        "output",
        "peer_timeout_s",
        "start_timeout_s",
        "tracking",
    }
    # Without defaults: a field that is new in a release changes no earlier run's digest.
    content = config.model_dump(mode="json", exclude={*free, "teacher", "python_path"}, exclude_defaults=True)
    # Nor how messages are read where there are none; what was the default at first is what is left out.
    talk = {name: value for name, value in content.pop("talk", {}).items() if name != "reading"}
    if config.talks and config.talk.reading is not Reading.REPLACE:
        talk["reading"] = config.talk.reading.value
    if talk:
        content["talk"] = talk
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings or results by dotted names."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


class MetricsFile:
    """Appends one JSON object a line to a run's `metrics.jsonl`, for whoever watches."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS_FILE

    @property
    def is_new(self) -> bool:
        """Whether nothing was written to it yet."""
        return not (self._path.exists() and self._path.stat().st_size)

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line; a line of "kind" "resumed" takes back those of later steps than its "step"."""
        append_line(self._path, line)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Appends a JSON object to a file of lines; what a killed writer left of one stays a line of its own."""
    with writing(path), path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the last writer was killed in the middle of a line
                file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics that still hold, without those before a resumption."""
    kept: list[dict[str, Any]] = []
    for line in read_new_lines(path, 0)[0]:
        if line["kind"] == "resumed":
            kept = [each for each in kept if each["step"] <= line["step"]]
        else:
            kept.append(line)
    return kept


def read_new_lines(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """Returns the whole lines of a metrics file from a position on, and the position after them.

    A line that its writer was killed in is passed over.
    """
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        content = file.read()
    end = content.rfind(b"\n") + 1
    lines = []
    for line in content[:end].splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines, position + end
