"""Logs as JSON, and under which names a turn is told of on both sides."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch

from services.teacher.config import ServiceConfig, SignalsConfig
from services.teacher.logs import write_logs_of
from student_client import TeacherError
from tests.toy import STUDENT_DIM, WatchedTeacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.teacher.families.base import Teacher
    from student_client import TeacherTalk
    from tests.toy_server import ToyServer


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """What this process logs, as a replica of the teacher "minilm" would."""
    root, ours = logging.getLogger(), logging.getLogger("services")
    before, level, stream = list(root.handlers), ours.level, io.StringIO()
    config = ServiceConfig(name="minilm", auth="none", signals=SignalsConfig(logs="json"))
    write_logs_of(config, stream=stream).replica = "10.0.0.1:41501"
    yield stream
    root.handlers[:] = before
    ours.setLevel(level)


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_when_what_and_where(logs: io.StringIO) -> None:
    logging.getLogger("services.teacher.gate").error("nobody: %s\n%s", "\N{EURO SIGN}", "more")
    (line,) = _lines(logs)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "ERROR",
        "logger": "services.teacher.gate",
        "message": "nobody: \N{EURO SIGN}\nmore",
        "teacher": "minilm",
        "replica": "10.0.0.1:41501",
    }


def test_what_is_worth_knowing_is_told_also_as_text(logs: io.StringIO) -> None:
    root, stream = logging.getLogger(), io.StringIO()
    before = list(root.handlers)
    write_logs_of(ServiceConfig(auth="none"), stream=stream)
    assert root.handlers == before  # somebody writes lines already
    root.handlers[:] = []
    write_logs_of(ServiceConfig(auth="none"), stream=stream)
    logging.getLogger("services.teacher.gate").info("read anew: %d", 3)
    logging.getLogger("transformers").info("this is not ours")
    assert stream.getvalue().endswith(" INFO services.teacher.gate: read anew: 3\n")
    assert stream.getvalue().count("\n") == 1


def test_a_defect_is_logged_with_its_conversation_and_turn_and_the_student_logs_the_same_names(
    logs: io.StringIO,
    tiny_teacher: Teacher,
    start_server: Callable[..., ToyServer],
    connect: Callable[..., TeacherTalk],
) -> None:
    watched: Any = WatchedTeacher(tiny_teacher)
    server = start_server(watched)
    talk = connect(server.address)
    talk(torch.randn(2, 4, STUDENT_DIM))

    def fail(name: str) -> None:
        if name == "upper":
            raise RuntimeError("of its own")

    watched.watch = fail
    logging.getLogger("student_client").setLevel(logging.INFO)
    with pytest.raises(TeacherError, match="the teacher failed"):
        talk(torch.randn(2, 4, STUDENT_DIM))
    logging.getLogger("student_client").setLevel(logging.NOTSET)
    service, student = _lines(logs)
    assert service["logger"] == "services.teacher.errors"
    assert "RuntimeError: of its own" in service["error"]
    assert student["logger"] == "student_client.conversation"
    assert student["replica"] == server.address
    assert (student["conversation"], student["turn"]) == (service["conversation"], service["turn"])
    assert service["turn"] == 2
    assert f"conversation {service['conversation']}" in student["message"]
