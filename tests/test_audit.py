"""The audit log: nobody can fill it, or keep others out of it, and it may be rotated."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from preceptor.names import UNKNOWN, UNNAMED
from preceptor.v1 import teacher_pb2 as pb
from services.teacher import access
from services.teacher.audit import RefusalsLog, audit, write_audit_to
from tests.test_tenant_access import guarded
from tests.test_tenant_file import file, invoke
from tests.test_visits import written
from tests.toy_frames import close, opening
from tests.toy_server import RawStudent, ToyServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["file", "guarded"]


def test_strangers_can_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = RefusalsLog(max_lines_per_s=3, clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for _ in range(10):
            log.refused("", "peer", "no")
        now[0] += 1
        log.refused("", "peer", "no")
        log.refused("", "peer", "no")
    assert [line.get("left_out", 0) for line in written(caplog)] == [0, 0, 0, 7, 0]
    assert {line["tenant"] for line in written(caplog)} == {UNKNOWN}


def test_conversations_that_name_no_tenant_are_called_what_the_status_calls_them(
    server: ToyServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), RawStudent(server.address, []) as student:
        student.send(opening(), close())
        student.rest()
        server.wait_until(lambda: not server.servicer._visits)
    named = {line["event"]: line["tenant"] for line in written(caplog)}
    assert named == {"opened": UNKNOWN, "closed": UNNAMED}


@pytest.mark.parametrize(
    ("said", "num_tracebacks"),
    [
        ("ExecuteBatchError raised in core by servicer method [/Converse]", 0),
        ("Unexpected [ValueError] raised by servicer method [/Converse]", 1),
    ],
)
def test_a_call_that_is_gone_is_a_line_and_a_defect_keeps_its_traceback(
    said: str, num_tracebacks: int, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        int("none")
    except ValueError:
        logging.getLogger("grpc._cython.cygrpc").exception(said)
    assert said in caplog.text
    assert caplog.text.count("Traceback") == num_tracebacks


def test_a_team_that_is_refused_fills_its_own_lines_only(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = RefusalsLog(max_lines_per_s=1, max_tenants=2, clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for tenant in ("", "a", "b", "c", "d") * 3:
            log.refused(tenant, "peer", "no")
        assert [line["tenant"] for line in written(caplog)] == [
            UNKNOWN,
            "a",
            "b",
            "c",
        ]  # c and d share what is left
        now[0] += 1
        log.refused("a", "peer", "no")
        now[0] += 1
        log.refused("d", "peer", "no")  # in the place of a, of whom nothing is left to say
        log.refused("b", "peer", "no")
        log.refused("e", "peer", "no")
    after = [(line["tenant"], line.get("left_out", 0)) for line in written(caplog)[4:]]
    assert after == [("a", 2), ("d", 0), ("b", 2), ("e", 5)]
    assert len(log._seconds) == 2


def test_a_team_that_floods_a_full_replica_does_not_fill_the_log(
    guarded: ToyServer, file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_refusals", RefusalsLog(max_lines_per_s=2, clock=lambda: 0.0))
    token = invoke("add", file, "support", "--max-conversations", 1)
    metadata = (("authorization", f"Bearer {token}"),)
    with caplog.at_level(logging.INFO), RawStudent(guarded.address, metadata) as first:
        first.send(opening())
        assert first.receive().WhichOneof("frame") == "opened"
        for _ in range(5):
            with RawStudent(guarded.address, metadata) as another:
                another.send(opening())
                assert another.receive().failed.reason == pb.REASON_OVERLOADED
    refused = [line for line in written(caplog) if line["event"] == "refused"]
    assert [line["tenant"] for line in refused] == ["support"] * 2


@pytest.fixture
def _own_logger() -> Iterator[None]:
    logger = logging.getLogger("preceptor.audit")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.level, logger.propagate = before


@pytest.mark.usefixtures("_own_logger")
def test_the_audit_log_may_be_a_file_that_is_rotated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "audit.jsonl"
    write_audit_to(path)
    audit("opened", tenant="a")
    path.rename(tmp_path / "audit.1")
    audit("closed", tenant="a")
    lines = [json.loads(file.read_text()) for file in (tmp_path / "audit.1", path)]
    assert [line["event"] for line in lines] == ["opened", "closed"]
    assert datetime.fromisoformat(lines[0]["time"]).tzinfo is not None
    write_audit_to(None)
    audit("refused", why="no")
    assert json.loads(capsys.readouterr().err)["why"] == "no"
