"""Where the time of a step goes: student, wire, queue, teacher; the parts add up."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preceptor.v1 import teacher_pb2 as pb
from student_client.run import StudentRun
from student_client.times import Journey, StepTimes, WaitingClock, WaitingTimes
from tests.test_reconnect import _fill, pool
from tests.test_train_run import make_config, row_server, table
from tests.toy import STUDENT_DIM, WatchedTeacher

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from services.teacher.families.base import Teacher
    from student_client.talk import TeacherTalk
    from tests.toy_server import ToyServer

__all__ = ["pool", "row_server", "table"]

HELD_S = 0.3
PATIENCE_S = 30.0
Span = tuple[float, float]


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _journey(clock: Hands, sent_s: float, answered_s: float, queue_s: float, compute_s: float) -> Journey:
    journey = Journey(clock)
    clock.now_s = sent_s
    journey.sent()
    clock.now_s = answered_s
    journey.answered(pb.Receipt(queue_ms=1000 * queue_s, compute_ms=1000 * compute_s))
    return journey


def test_a_wait_is_split_by_what_the_receipt_says() -> None:
    journey = _journey(Hands(), 0.0, 10.0, 4.0, 2.0)
    assert journey.split(0.0, 10.0) == WaitingTimes(wire_s=4.0, queue_s=4.0, teacher_s=2.0)
    assert journey.split(5.0, 10.0) == WaitingTimes(wire_s=2.0, queue_s=1.0, teacher_s=2.0)
    assert journey.split(9.0, 10.0) == WaitingTimes(wire_s=1.0)
    assert Journey(Hands()).split(0.0, 10.0) == WaitingTimes(wire_s=10.0)  # no answer came


def test_a_pause_that_the_teacher_asked_for_is_queue() -> None:
    clock = Hands()
    journey, search = Journey(clock), Journey(clock)
    clock.now_s = 1.0
    with journey.without_room():
        clock.now_s = 3.0
    with search.without_room():
        clock.now_s = 4.0
    journey.share(search)
    journey.share(search)  # of a search that another turn had begun, counted once
    assert journey.split(0.0, 5.0) == WaitingTimes(wire_s=2.0, queue_s=3.0)


def test_callers_that_are_blocked_at_once_count_once() -> None:
    clock = Hands()
    waiting = WaitingClock(clock)
    first, second = (_journey(clock, 0.0, end_s, 1.0, 1.0) for end_s in (8.0, 4.0))
    clock.now_s = 0.0
    with waiting.waiting(first):
        clock.now_s = 2.0
        with waiting.waiting(second):
            clock.now_s = 4.0
        assert waiting.blocked_s == 4.0
        clock.now_s = 8.0
    assert waiting.times.waiting_s == 8.0
    assert waiting.blocked_s == 0.0


@given(
    st.lists(
        st.tuples(*[st.floats(0.0, 1e4) for _ in range(4)], st.floats(0.0, 1e6), st.floats(0.0, 1e6)),
        max_size=8,
    )
)
def test_the_parts_add_up_whatever_receipts_say(turns: list[tuple[float, ...]]) -> None:
    for sent_s, way_s, start_s, wait_s, queue_s, compute_s in turns:
        journey = _journey(Hands(), sent_s, sent_s + way_s, queue_s, compute_s)
        split = journey.split(start_s, start_s + wait_s)
        assert min(split.wire_s, split.queue_s, split.teacher_s) >= 0.0
        assert split.waiting_s == pytest.approx(wait_s, rel=1e-9, abs=1e-6)


def test_a_steps_parts_are_all_of_it_and_their_mean_over_workers_too() -> None:
    times = StepTimes(4, 8.0, WaitingTimes(wire_s=1.0, queue_s=2.0, teacher_s=3.0))
    assert times.of_one() == {
        "step_s": 2.0,
        "student_s": 0.5,
        "wire_s": 0.25,
        "queue_s": 0.5,
        "teacher_s": 0.75,
    }
    mean = times.averaged(lambda number: (number + 0.0) / 2)  # the other one did nothing
    assert (mean.num_steps, mean.step_s, mean.student_s, mean.waiting_share) == (4, 4.0, 1.0, 0.75)


def _states() -> torch.Tensor:
    return torch.randn(2, 4, STUDENT_DIM, generator=torch.Generator().manual_seed(0))


def test_a_turn_that_is_held_in_the_queue_shows_as_queue(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], pool: ThreadPoolExecutor
) -> None:
    server = start_server()
    talk = connect(server.address)
    talk(_states())
    server.queue.await_arrivals()
    before, start_s = talk.conversation.times, time.perf_counter()
    server.queue.gate.clear()
    held = pool.submit(talk, _states())
    server.queue.await_arrivals()
    time.sleep(HELD_S)
    server.queue.gate.set()
    held.result(60)
    waited = talk.conversation.times - before
    assert waited.queue_s > 0.9 * HELD_S
    assert waited.waiting_s <= time.perf_counter() - start_s


def test_a_slow_teacher_shows_as_its_computation(
    tiny_teacher: Teacher, start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    slow = WatchedTeacher(tiny_teacher)
    talk = connect(start_server(slow).address)
    talk(_states())
    before = talk.conversation.times
    slow.watch = lambda _: time.sleep(HELD_S / 3)
    heard = talk(_states())
    waited = talk.conversation.times - before
    computed_s = sum(receipt.compute_ms for receipt in heard.receipts) / 1000
    assert computed_s > HELD_S / 4
    assert waited.teacher_s == pytest.approx(computed_s, rel=0.05)


def test_turns_that_a_full_queue_refuses_show_as_queue_and_say_why_they_wait(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], pool: ThreadPoolExecutor
) -> None:
    server = start_server(max_queued_tokens=1)
    talk = connect(server.address)
    talk(_states())
    server.queue.await_arrivals()
    pending = _fill(server, connect(server.address), pool)
    before = talk.conversation.times
    refused = pool.submit(talk, _states())
    server.queue.await_refusals(2)
    deadline_s = time.monotonic() + PATIENCE_S
    while "no room" not in (text := talk.conversation.waits_for[0]):
        assert time.monotonic() < deadline_s, "it never says so"
        time.sleep(0.01)
    (asked_s,) = re.findall(r"^no room at the teacher: the teacher's queue: .*; again in ([\d.]+) s$", text)
    server.queue.gate.set()
    refused.result(60)
    for each in pending:
        each.result(60)
    assert (talk.conversation.times - before).queue_s > 0.9 * float(asked_s) - 0.05
    assert talk.conversation.waits_for == ("", 0.0)


def test_a_run_tells_where_the_time_of_its_steps_went(table: Path, row_server: ToyServer) -> None:
    run = StudentRun(make_config(table, row_server.address, losses={"interact": 1.0}))
    assert len(list(run.train_epoch())) == 3
    _, times = run.pace.lap()
    parts = times.of_one()
    assert times.num_steps == 3
    assert sum(seconds for name, seconds in parts.items() if name != "step_s") == pytest.approx(
        parts["step_s"], rel=1e-12
    )
    assert all(seconds > 0 for name, seconds in parts.items() if name != "queue_s")
    facts = run.finish()
    assert facts["step_times"] == pytest.approx(parts)
    waiting_s = 3 * sum(parts[name] for name in ("wire_s", "queue_s", "teacher_s"))
    assert facts["waiting_s"] == pytest.approx(waiting_s)
    run.close()


def test_times_are_those_of_the_mean_worker(table: Path) -> None:
    other_s = 2.0  # what the other worker says to everything that is asked
    run = StudentRun(make_config(table, None), world_size=2, sum_over_workers=lambda own: own + other_s)
    list(run.train_epoch())
    mean = run.pace.epoch()
    assert mean.step_s == pytest.approx((run.pace.total.step_s + other_s) / 2)
    assert mean.waiting == WaitingTimes(1.0, 1.0, 1.0)
