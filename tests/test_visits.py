"""How long a conversation may last, how much a team may ask for, and what is written down of it."""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch

from preceptor.codec import CodecSpec
from preceptor.v1 import teacher_pb2 as pb
from services.teacher import servicer
from services.teacher.errors import OverloadedError
from services.teacher.quota import Quotas
from student_client import AccessError, ClientOptions, TeacherClient
from student_client import OverloadedError as ToldOverloadedError
from tests.test_tenant_access import guarded, options_of
from tests.test_tenant_file import file, invoke
from tests.toy import STUDENT_DIM
from tests.toy_frames import MESSAGE_DIM, backward, close, codec_state, exchange, opening, set_codec
from tests.toy_server import RawStudent, ToyServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from student_client import TeacherTalk

__all__ = ["file", "guarded"]

STATES = torch.randn(1, 2, STUDENT_DIM)
SOON = 0.2


def written(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Returns the lines of the audit log."""
    return [json.loads(each.message) for each in caplog.records if each.name == "preceptor.audit"]


def test_a_stream_that_opens_nothing_is_closed(start_server: Callable[..., ToyServer]) -> None:
    server = start_server(max_open_s=SOON)
    with RawStudent(server.address) as silent, RawStudent(server.address) as student:
        student.send(opening())
        assert student.receive().WhichOneof("frame") == "opened"
        failed = silent.receive().failed
        assert failed.reason == pb.REASON_PROTOCOL_VIOLATION
        assert failed.message == "open: got none, expected one at once: nothing was opened in time"
        server.wait_until(lambda: len(server.servicer._visits) == 1)


@pytest.mark.parametrize("limit", ["max_idle_s", "max_conversation_s"])
def test_a_conversation_that_ends_goes_on_in_another_with_the_next_turn(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], limit: str
) -> None:
    server = start_server(**{limit: SOON})
    talk = connect(server.address)
    before = talk(STATES)
    server.wait_until(lambda: not server.servicer._visits)
    after = talk(STATES)
    assert torch.equal(after.decoded, before.decoded)
    torch.autograd.backward(after.decoded.sum())
    assert talk.conversation.num_reconnects == 1


def test_one_that_waits_for_the_teacher_is_not_idle(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server(max_idle_s=SOON)
    talk = connect(server.address)
    server.queue.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(talk, STATES)
        server.wait_until(
            lambda: any(visit.conversation.is_busy for visit in server.servicer._visits.values())
        )
        time.sleep(10 * SOON)
        server.queue.gate.set()
        assert answer.result().decoded.shape == STATES.shape
    assert talk.conversation.num_reconnects == 0


def test_a_bucket_covers_bursts_and_no_more() -> None:
    now = [0.0]
    quotas = Quotas(lambda: now[0])
    quotas.charge("a", 1000, 100.0)  # ten seconds' worth
    with pytest.raises(
        OverloadedError, match="tokens of a: got 50 more, expected at most 100 a second"
    ) as told:
        quotas.charge("a", 50, 100.0)
    assert told.value.retry_after_s == pytest.approx(0.5)
    quotas.charge("b", 50, 100.0)  # another's is its own
    now[0] += 0.5
    quotas.charge("a", 50, 100.0)
    now[0] += 10.0
    quotas.charge("a", 5000, 100.0)  # larger than the bucket: a full one covers it
    with pytest.raises(OverloadedError) as told:
        quotas.charge("a", 5000, 100.0)
    assert told.value.retry_after_s == pytest.approx(50.0)


def test_a_team_over_its_quota_is_told_when_to_come_back_and_others_are_served(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk]
) -> None:
    greedy = connect(
        guarded.address, options=options_of(file, invoke("add", file, "greedy", "--tokens-per-s", 0.2))
    )
    other = connect(guarded.address, options=options_of(file, invoke("add", file, "other")))
    greedy(STATES)  # two positions: the bucket is empty
    with pytest.raises(ToldOverloadedError, match=r"tokens of greedy: got 2 more, expected at most 0\.2 a"):
        greedy(STATES)
    for _ in range(3):
        other(STATES)


def deaf_frames() -> list[pb.ConverseRequest]:
    """Returns what a student says whose replies, 786 KB each, are more than is sent ahead."""
    long = CodecSpec(message_dim=MESSAGE_DIM, message_len=64)
    content = torch.randn(1024, 64, MESSAGE_DIM)
    turns = (exchange(turn, content, wants_gradient=False) for turn in range(1, 25))
    return [opening(long), set_codec(state=codec_state(long)), *turns]


@pytest.mark.parametrize("has_closed", [False, True])
def test_a_student_who_leaves_its_answers_unread_is_cut_off_and_others_go_on(
    start_server: Callable[..., ToyServer],
    connect: Callable[..., TeacherTalk],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    has_closed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    monkeypatch.setattr(servicer, "_LINGER_S", SOON)
    server = start_server(max_unread_s=SOON)
    other = connect(server.address)
    before = other(STATES)
    with caplog.at_level(logging.INFO), RawStudent(server.address) as deaf:
        deaf.send(*deaf_frames())
        if has_closed:
            deaf.done_writing()
        server.wait_until(lambda: len(server.servicer._visits) == 2)
        server.wait_until(lambda: len(server.servicer._visits) == 1)
        assert torch.equal(other(STATES).decoded, before.decoded)
    assert other.conversation.num_reconnects == 0
    assert [line["why"] for line in written(caplog) if line["event"] == "closed"] == [
        "its answers were not read"
    ]


def test_a_quota_holds_for_gradients_that_are_asked_for_again(guarded: ToyServer, file: Path) -> None:
    token = invoke("add", file, "greedy", "--tokens-per-s", 0.4)  # four at once: one turn
    with RawStudent(guarded.address, metadata=[("authorization", f"Bearer {token}")]) as student:
        student.ask(opening())
        assert student.ask(set_codec(), exchange(1)).HasField("reply")
        assert student.ask(backward(1)).HasField("gradients")
        num_admitted = guarded.queue.num_admitted
        for frame in (backward(1), exchange(1), exchange(2)):
            failed = student.ask(frame).failed
            assert failed.reason == pb.REASON_OVERLOADED
            assert "tokens of greedy: got 4 more, expected at most 0.4 a second" in failed.message
        assert guarded.queue.num_admitted == num_admitted


def test_a_quota_does_not_pay_for_what_the_queue_refuses(
    guarded: ToyServer, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = invoke("add", file, "modest", "--tokens-per-s", 1.2, "--max-queued-tokens", 4)  # twelve at once
    with (
        caplog.at_level(logging.INFO),
        RawStudent(guarded.address, metadata=[("authorization", f"Bearer {token}")]) as student,
    ):
        student.ask(opening())
        guarded.queue.gate.clear()
        student.send(set_codec(), exchange(1))
        guarded.queue.await_arrivals()
        guarded.wait_until(lambda: guarded.queue.num_queued_tokens == 0)  # the engine has it
        student.send(exchange(2))
        guarded.queue.await_arrivals()
        for turn in range(3, 9):
            assert "tokens of modest more than" in student.ask(exchange(turn)).failed.message
        guarded.queue.gate.set()
        assert [student.receive().reply.turn for _ in range(2)] == [1, 2]
        assert student.ask(exchange(9)).reply.turn == 9  # the last four of twelve
        student.send(close())
        student.rest()
    (line,) = (line for line in written(caplog) if line["event"] == "closed")
    assert (line["turns"], line["tokens"]) == (3, 12)


def test_a_revoked_student_who_reads_nothing_is_cut_off(
    guarded: ToyServer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "_LINGER_S", SOON)
    token = invoke("add", file, "deaf")
    with RawStudent(guarded.address, metadata=[("authorization", f"Bearer {token}")]) as student:
        student.send(*deaf_frames())
        visits = guarded.servicer._visits
        guarded.wait_until(
            lambda: any(visit.conversation.signals.tally.bytes > 24 * 786_000 for visit in visits.values())
        )
        invoke("revoke", file, "deaf")
        start_s = time.monotonic()
        guarded.wait_until(lambda: not visits)
        assert time.monotonic() - start_s < 20  # before its call would end by itself


def test_the_audit_log_says_who_came_and_left_and_holds_no_secret(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk], caplog: pytest.LogCaptureFixture
) -> None:
    token = invoke("add", file, "support")
    with caplog.at_level(logging.INFO):
        talk = connect(guarded.address, options=options_of(file, token))
        torch.autograd.backward(talk(STATES).decoded.sum())
        talk.close()
        guarded.wait_until(lambda: not guarded.servicer._visits)
        stranger = connect(guarded.address, options=options_of(file, "stranger.secret-secret-secret"))
        with pytest.raises(AccessError):
            stranger(STATES)
        with pytest.raises(AccessError):
            TeacherClient(guarded.address, ClientOptions()).describe()
    opened, closed = (line for line in written(caplog) if line["event"] != "refused")
    assert (opened["event"], opened["tenant"]) == ("opened", "support")
    assert opened["peer"].startswith("ipv4:127.0.0.1:")
    assert closed["conversation"] == opened["conversation"]
    assert (closed["why"], closed["turns"], closed["tokens"]) == ("the student left", 1, 2)
    assert closed["bytes"] > 0
    refused = [line for line in written(caplog) if line["event"] == "refused"]
    assert refused
    assert all("not known" in line["why"] or "got none" in line["why"] for line in refused)
    assert token.partition(".")[2] not in caplog.text
    assert "secret" not in caplog.text
