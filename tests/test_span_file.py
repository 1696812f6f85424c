"""A file of spans that several processes append to: it has an end, and no line is lost or broken at it."""

from __future__ import annotations

import multiprocessing
import os
from typing import TYPE_CHECKING

import pytest

from preceptor import span_file
from preceptor.span_file import append, make_room
from preceptor.tracing import Tracing
from tests.toy_traces import spans_in

if TYPE_CHECKING:
    from pathlib import Path

NUM_PROCESSES, NUM_LINES, LINE_BYTES = 4, 500, 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spans.jsonl"


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _append_lines(path: Path, writer: int, max_file_bytes: int) -> None:
    for number in range(NUM_LINES):
        line = f"{writer} {number}".ljust(LINE_BYTES - 1) + "\n"
        append(path, line.encode(), max_file_bytes)


def test_a_file_that_is_full_becomes_the_old_one_in_the_place_of_an_older_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append, "__defaults__", (1,))  # a span is more
    for name in ("first", "second", "third"):
        tracing = Tracing(str(path), "teacher")
        tracing.tracer.start_span(name).end()
        tracing.close()
    assert [span.name for span in spans_in(_old(path), path)] == ["second", "third"]
    assert sorted(path.parent.iterdir()) == [path, _old(path)]
    assert span_file._MAX_FILE_BYTES == 10**9


def test_processes_that_append_to_a_full_file_lose_no_line(path: Path) -> None:
    max_file_bytes = NUM_PROCESSES * NUM_LINES * LINE_BYTES * 2 // 3  # it is full once
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_append_lines, args=(path, writer, max_file_bytes))
        for writer in range(NUM_PROCESSES)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = [line.split() for each in (_old(path), path) for line in each.read_text().splitlines()]
    expected = [[str(writer), str(n)] for writer in range(NUM_PROCESSES) for n in range(NUM_LINES)]
    assert sorted(lines) == sorted(expected)
    assert _old(path).stat().st_size >= max_file_bytes


def test_who_still_has_the_old_file_open_does_not_move_the_new_one(path: Path) -> None:
    path.write_text("old\n")
    one, other = (os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(2))
    try:
        assert make_room(path, one)
        assert not make_room(path, other)  # who moved it has it locked, until it begins another
    finally:
        os.close(one)
    append(path, b"new\n")
    assert make_room(path, other)
    os.close(other)
    assert (_old(path).read_text(), path.read_text()) == ("old\n", "new\n")


def test_a_link_stays_and_what_cannot_be_moved_is_appended_to(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk" / "spans"
    target.parent.mkdir()
    path.symlink_to(target)
    for line in (b"old\n", b"new\n"):
        append(path, line, 1)
    assert path.is_symlink()
    assert (_old(target).read_text(), path.read_text()) == ("old\n", "new\n")
    _old(target).unlink()
    _old(target).mkdir()
    append(path, b"newer\n", 1)
    assert path.read_text() == "new\nnewer\n"
