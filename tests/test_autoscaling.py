"""How busy a replica is, how many there should be, and who moves when there are more."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.teacher import servicer
from services.teacher.app import build_app
from services.teacher.autoscaling import QueueDelayPolicy, desired_replicas, stats_of
from services.teacher.balance import num_to_move
from services.teacher.environment import replica_ports
from services.teacher.load import Load, LoadMeter
from tests.test_directory import report
from tests.toy import STUDENT_DIM
from tests.toy_queue import Clock
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.teacher.directory import Report
    from student_client import TeacherTalk
    from tests.toy_server import ToyServer


def test_the_load_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    meter = LoadMeter(clock, window_s=10)
    assert meter.load(5, 7) == Load(5, 0.0, 0.0, 7)
    for _ in range(4):
        clock.now_s += 1
        meter.computed(0.5, 100)
    load = meter.load(400, 0)
    assert load.tokens_per_s == pytest.approx(200)
    assert load.queue_s == pytest.approx(2)
    assert load.busy_share == pytest.approx(0.5)  # two of the four seconds that there were
    clock.now_s += 9
    assert meter.load(0, 0).busy_share == pytest.approx(0.05)  # the last of them; the others are forgotten
    clock.now_s += 9
    assert meter.load(400, 0) == Load(400, pytest.approx(200), 0.0, 0)  # type: ignore[arg-type]


def test_a_pass_longer_than_the_window_keeps_a_replica_busy_while_it_runs_and_no_more() -> None:
    clock = Clock()
    meter = LoadMeter(clock, window_s=10)
    for _ in range(2):
        meter.started()
        clock.now_s += 15
        assert meter.load(20000, 0).busy_share == 1.0
        clock.now_s += 45
        meter.computed(60, 6000)
        assert meter.load(20000, 0) == Load(20000, pytest.approx(100), 1.0, 0)  # type: ignore[arg-type]
    clock.now_s += 30
    assert meter.load(0, 0).busy_share == 0.0


@pytest.mark.parametrize(
    ("queue_s", "busy", "num_replicas", "expected"),
    [
        ([0.4], [1.0], 1, 1),  # busy, but nobody waits too long
        ([0.6], [1.0], 1, 2),
        ([9.0], [1.0], 1, 2),  # at most twice as many
        ([9.0, 0.0, 0.0], [1.0, 0.0, 0.0], 3, 6),
        ([0.0, 0.0], [0.4, 0.3], 2, 1),
        ([0.0, 0.0], [0.4, 0.4], 2, 2),  # one alone would be too busy
        ([0.3, 0.3], [0.1, 0.1], 2, 2),  # some wait
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 3, 2),  # one at a time
        ([0.0], [0.0], 1, 1),
        ([0.0], [0.0], 2, 2),  # the other one has not told anything yet
        ([], [], 2, 2),  # nobody has told anything yet
        ([], [], 0, 1),
    ],
)
def test_replicas_follow_the_queue(
    queue_s: list[float], busy: list[float], num_replicas: int, expected: int
) -> None:
    assert desired_replicas(queue_s, busy, num_replicas, 0.5) == expected


def test_the_policy_reads_what_replicas_tell() -> None:
    told = [stats_of(Load(100, 50.0, 1.0, 0)), stats_of(Load(0, 50.0, 0.2, 0))]
    metrics = {name: dict(enumerate(each[name] for each in told)) for name in told[0]}
    context: Any = SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=2)
    assert QueueDelayPolicy(target_queue_s=0.5)(context) == (4, {})
    assert QueueDelayPolicy(target_queue_s=2.0)(context) == (2, {})
    nothing: Any = SimpleNamespace(aggregated_metrics=None, target_num_replicas=2)
    assert QueueDelayPolicy(target_queue_s=0.5)(nothing) == (2, {})


def test_the_application_scales_as_is_configured(tmp_path: Path) -> None:
    scaling = {"max_replicas": 3, "target_queue_ms": 250, "upscale_delay_s": 1}
    config = row_config(tmp_path, num_replicas=2, autoscaling=scaling)
    deployment = build_app(config)._bound_deployment
    autoscaling = deployment._deployment_config.autoscaling_config
    assert (autoscaling.min_replicas, autoscaling.max_replicas) == (2, 3)
    assert autoscaling.upscale_delay_s == 1
    assert autoscaling.policy.policy_kwargs == {"target_queue_s": 0.25}
    assert autoscaling.policy.get_policy().__name__ == "QueueDelayPolicy"
    assert len(replica_ports(config)) == 3 + 8
    with pytest.raises(ValueError, match=r"max_replicas: got 1, expected at least num_replicas, 2"):
        row_config(tmp_path, num_replicas=2, autoscaling={"max_replicas": 1})


@given(counts=st.lists(st.integers(0, 300), min_size=1, max_size=8))
def test_replicas_that_move_what_they_have_too_much_become_even(counts: list[int]) -> None:
    reports = [report(str(index), count) for index, count in enumerate(counts)]
    moves = [
        num_to_move(each.num_conversations, each.num_conversations, each.address, reports) for each in reports
    ]
    part = math.ceil(sum(counts) / len(counts))
    assert [count - move for count, move in zip(counts, moves, strict=True)] == [
        min(count, part) for count in counts
    ]


def test_one_who_is_alone_keeps_its_conversations() -> None:
    assert num_to_move(9, 9, "a", [report("a", 9)]) == num_to_move(9, 9, "a", []) == 0


def test_conversations_move_to_a_new_replica_and_hear_the_same(
    start_server: Callable[..., ToyServer],
    connect: Callable[..., TeacherTalk],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servicer, "_BALANCE_S", 0.0)
    old, new = start_server(), start_server()
    states = torch.randn(1, 2, STUDENT_DIM)
    talks = [connect(f"{old.address},{new.address}", deterministic=True) for _ in range(4)]
    before = [talk.start(states).result() for talk in talks]
    placed = [len(each.servicer._visits) for each in (old, new)]

    async def learn(server: ToyServer, reports: list[Report]) -> None:
        server.servicer.report(server.address)
        server.servicer.learn(reports)

    fuller, emptier = (old, new) if placed[0] >= placed[1] else (new, old)
    reports = [fuller.servicer.report(fuller.address), report(emptier.address, 0)]
    fuller.call(learn(fuller, reports))
    fuller.call(learn(fuller, reports))  # those who were asked are not asked again
    asked = [visit for visit in fuller.servicer._visits.values() if visit.is_moving]
    assert len(asked) == max(placed) - math.ceil(max(placed) / 2)
    for talk, heard in zip(talks, before, strict=True):
        torch.autograd.backward(heard.decoded.sum())
        assert torch.equal(talk(states).decoded, heard.decoded)
    assert sum(talk.conversation.num_reconnects for talk in talks) == len(asked)
