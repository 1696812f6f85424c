"""Credits: what a student may send before it is answered, and what happens to one that sends more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from preceptor.v1 import teacher_pb2 as pb
from services.teacher.credit import CreditLine
from services.teacher.errors import Status
from tests.toy_frames import (
    Desk,
    backward,
    close,
    codec_state,
    exchange,
    ids,
    message,
    observe,
    opening,
    set_codec,
)
from tests.toy_server import RawStudent

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.teacher.engine import Engine
    from tests.toy_server import ToyServer

CREDIT = 8192
SMALL = {"max_frame_bytes": 4096, "credit_bytes": CREDIT}


def test_a_line_lends_no_more_than_it_has() -> None:
    line = CreditLine(100)
    assert line.spend(60)
    assert not line.spend(41)
    assert line.spend(40)
    assert not line.spend(1)
    assert line.spend(0)


def test_grants_go_out_in_quarters() -> None:
    line = CreditLine(100)
    assert line.spend(100)
    assert [line.give_back(10) for _ in range(10)] == [0, 0, 30, 0, 0, 30, 0, 0, 30, 0]
    assert line.spend(90)
    assert not line.spend(1)


def test_a_tiny_line_grants_every_byte() -> None:
    line = CreditLine(1)
    assert line.spend(1)
    assert line.give_back(0) == 0
    assert line.give_back(1) == 1


@given(st.integers(8, 1000), st.lists(st.integers(1, 300), max_size=60))
def test_both_ends_agree_and_at_least_three_quarters_come_back(total: int, sizes: list[int]) -> None:
    line, credit, unanswered = CreditLine(total), total, list[int]()
    for size in sizes:
        assert line.spend(size) is (size <= credit)
        if size <= credit:
            credit -= size
            unanswered.append(size)
        elif unanswered:
            credit += line.give_back(unanswered.pop(0))
        assert credit + sum(unanswered) <= total
    for size in unanswered:
        credit += line.give_back(size)
    assert credit > 3 * total / 4 - 1


def _open(desk: Desk) -> pb.Opened:
    (answer,) = desk.say(opening(), set_codec())
    return answer.opened


def _split(answers: list[pb.ConverseResponse]) -> tuple[int, list[pb.ConverseResponse]]:
    """Returns the bytes that were granted, and the other answers."""
    granted = sum(answer.credit.bytes for answer in answers if answer.HasField("credit"))
    return granted, [answer for answer in answers if not answer.HasField("credit")]


def test_opened_says_how_much_credit_there_is(engine: Engine) -> None:
    with Desk(engine, **SMALL) as desk:
        assert desk.ask(opening()).opened.credit_bytes == CREDIT


def test_a_student_that_waits_for_its_credit_is_served_for_ever(engine: Engine) -> None:
    with Desk(engine, **SMALL) as desk:
        credit = _open(desk).credit_bytes - set_codec().ByteSize()
        for turn in range(1, 60):
            for frame in (exchange(turn, message(seed=turn)), backward(turn), observe(1000 + turn)):
                credit -= frame.ByteSize()
                assert credit >= 0
                granted, (answer,) = _split(desk.say(frame))
                assert not answer.HasField("failed")
                credit += granted
        assert credit > CREDIT / 2
        assert not desk.conversation.closed


def test_what_is_refused_and_what_needs_no_answer_gives_its_credit_back(engine: Engine) -> None:
    with Desk(engine, **SMALL) as desk:
        spent = set_codec().ByteSize()
        _open(desk)
        granted = 0
        for version in range(2, 60):
            frames = (set_codec(version, codec_state(seed=version)), exchange(0), backward(9))
            spent += sum(frame.ByteSize() for frame in frames)
            more, answers = _split(desk.say(*frames))
            assert [answer.HasField("failed") for answer in answers] == [True, True]
            granted += more
        assert spent - CREDIT / 4 < granted <= spent


def test_a_student_without_credit_is_cut_off(engine: Engine) -> None:
    with Desk(engine, **SMALL) as desk:
        _open(desk)
        large = [observe(turn, inputs={"ids": ids(32, 8)}) for turn in range(1, 6)]
        desk.say(large[0])
        assert not desk.conversation.closed
        _, answers = _split(desk.say(*large[1:], exchange(99)))
        assert desk.conversation.closed
        violations = [each.failed for each in answers if each.failed.reason == pb.REASON_PROTOCOL_VIOLATION]
        assert (violations[0].turn, violations[0].status_code) == (0, Status.FAILED_PRECONDITION)
        assert "credit: got a frame of" in violations[0].message
        assert "expected one that it covers" in violations[0].message
        assert all(not answer.HasField("reply") for answer in answers)  # nothing is taken after it


def test_closing_needs_no_credit(engine: Engine) -> None:
    with Desk(engine, **SMALL) as desk:
        _open(desk)
        assert desk.say(close()) == []
        assert desk.conversation.closed


def test_the_stream_of_a_student_without_credit_ends(start_server: Callable[..., ToyServer]) -> None:
    server = start_server(**SMALL)
    with RawStudent(server.address) as student:
        assert student.ask(opening()).HasField("opened")
        server.queue.gate.clear()  # nothing is answered, so nothing comes back
        student.send(set_codec())
        student.send(*(observe(turn, inputs={"ids": ids(32, 8)}) for turn in range(1, 8)))
        failed = student.receive().failed
        assert (failed.turn, failed.reason) == (0, pb.REASON_PROTOCOL_VIOLATION)
        server.queue.gate.set()
        answered = student.rest()
        assert all(answer.WhichOneof("frame") in ("observation", "credit", "failed") for answer in answered)
        assert sum(answer.HasField("observation") for answer in answered) < 7
    with RawStudent(server.address) as student:
        assert student.ask(opening()).HasField("opened")
