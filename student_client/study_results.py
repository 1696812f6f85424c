"""The files of a study's folder: a line a cell, and what was found out about its teachers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from student_client.records import append_line, read_new_lines
from student_client.study_cells import COORDINATES, digest_of
from student_client.whole_files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from student_client.study_cells import Cell
    from student_client.study_config import TeacherSource

__all__ = [
    "RESULTS_FILE",
    "StudyResults",
    "TeacherFacts",
    "coordinates_of",
    "is_finished",
    "newest",
    "read_lines",
]

RESULTS_FILE = "results.jsonl"
_TEACHERS_FILE = "teachers.json"


@dataclass(frozen=True)
class TeacherFacts:
    """What a teacher said it is.

    Attributes:
        name: its own, or that of its service.
        fingerprint: of its weights.
        num_parameters: how many there are.
    """

    name: str = ""
    fingerprint: str = ""
    num_parameters: int = 0


class StudyResults:
    """Reads and writes a study's results.

    Args:
        folder: of the study.

    Attributes:
        lines: all of them, the oldest first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / RESULTS_FILE
        self._by_key: dict[str, dict[str, Any]] = {}
        self._by_key_and_place: dict[tuple[str, tuple[Any, ...]], dict[str, Any]] = {}
        self.lines = read_lines(self._path)
        for line in self.lines:
            self._take(line)

    def add(self, line: dict[str, Any]) -> None:
        """Appends a line; it is the newest of its cell from now on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        append_line(self._path, line)
        self.lines.append(line)
        self._take(line)

    def finished(self, cell: Cell, fingerprint: str) -> dict[str, Any] | None:
        """Returns what came of a cell with this teacher, whatever its name was; None if it did not finish."""
        written = self._written(cell, fingerprint)
        if written is not None:
            return written
        same = self._by_key.get(cell.key(fingerprint))
        return {**same, **cell.coordinates} if same is not None and is_finished(same) else None

    def write_name(self, cell: Cell, fingerprint: str) -> bool:
        """Tells whether a cell is finished; if under another name, writes it down under its present one."""
        line = self.finished(cell, fingerprint)
        if line is not None and self._written(cell, fingerprint) is None:
            self.add(line)
        return line is not None

    def _written(self, cell: Cell, fingerprint: str) -> dict[str, Any] | None:
        place = coordinates_of(cell.coordinates)
        line = self._by_key_and_place.get((cell.key(fingerprint), place))
        return line if line is not None and is_finished(line) else None

    def teacher(self, source: TeacherSource) -> TeacherFacts | None:
        """Returns what a teacher said when it was served last; None if its config is not what it was then."""
        known = self._teachers().get(_source_digest(source))
        return None if known is None else TeacherFacts(**known)

    def remember(self, source: TeacherSource, facts: TeacherFacts) -> None:
        """Notes what a teacher said, so that it need not be served to know that its cells are finished."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / _TEACHERS_FILE, {**self._teachers(), _source_digest(source): asdict(facts)})

    def _teachers(self) -> dict[str, dict[str, Any]]:
        path = self._folder / _TEACHERS_FILE
        teachers: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        return teachers

    def _take(self, line: dict[str, Any]) -> None:
        self._by_key[line["key"]] = line
        self._by_key_and_place[line["key"], coordinates_of(line)] = line


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a file of results, the oldest first; what a killed writer left is passed over."""
    return [line for line in read_new_lines(path, 0)[0] if "key" in line]


def newest(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the newest line of each cell that was run to its end, by its coordinates.

    A failure says nothing of what came of the cell before.
    """
    return list({coordinates_of(line): line for line in lines if is_finished(line)}.values())


def coordinates_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """Returns which cell a line is of."""
    return tuple(line[name] for name in COORDINATES)


def is_finished(line: dict[str, Any]) -> bool:
    """Tells whether a line is of a cell that was run to its end."""
    return "error" not in line


def _source_digest(source: TeacherSource) -> str:
    """Returns a digest of what says which teacher is served."""
    content = source.model_dump(mode="json")
    text = source.serve.read_text() if source.serve is not None and source.serve.exists() else ""
    return digest_of([content, text])
