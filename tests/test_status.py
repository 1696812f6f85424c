"""How what replicas say of themselves becomes what a service says, and to whom."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from preceptor.names import OTHERS, UNKNOWN
from preceptor.v1 import status_pb2 as pb
from preceptor.v1 import teacher_pb2 as teacher
from services.teacher.gate import Pass
from services.teacher.signals import MAX_TENANTS
from services.teacher.status import StatusBoard

OPERATOR = Pass("platform", "digest", operator=True)
PEER = "ipv4:10.0.0.1:1"


class Service:
    """Replicas that report to a board, on a clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.board = StatusBoard("toy", lambda: self.now_s)
        self.began_s: dict[str, float] = {}

    def hear(self, address: str, *, is_leaving: bool = False, **turns: int) -> None:
        """Has a replica report that so many turns of each tenant were answered since it came up."""
        began_s = self.began_s.setdefault(address, self.now_s)
        message = pb.GetStatusResponse(
            time_s=self.now_s,
            replicas=[pb.ReplicaStatus(address=address, uptime_s=self.now_s - began_s, queued_tokens=7)],
            tenants=[_tenant(name, number) for name, number in turns.items()],
            conversations=[
                pb.ConversationStatus(id=f"{address}-{name}", tenant=name, peer=PEER, opened_s=began_s)
                for name in turns
            ],
            refusals=[
                pb.Refusal(time_s=self.now_s, tenant=name, peer=PEER, message=f"of {name}", count=1)
                for name in turns
            ],
        )
        self.board.hear(message, is_leaving=is_leaving)

    def turns(self, shown: Pass | None = None) -> dict[str, int]:
        return {each.name: each.num_turns for each in self.board.answer(shown).tenants}

    def history(self, history_s: int = 600, shown: Pass | None = None) -> list[dict[str, int]]:
        samples = self.board.answer(shown, history_s).history
        return [{each.name: each.num_turns for each in sample.tenants} for sample in samples]


def _tenant(name: str, num_turns: int) -> pb.TenantStatus:
    return pb.TenantStatus(
        name=name,
        num_conversations=1,
        num_turns=num_turns,
        num_tokens=10 * num_turns,
        request_bytes=100 * num_turns,
        queue_s=0.5 * num_turns,
        compute_s=0.25 * num_turns,
        num_refusals=1,
        weight=2.0,
        queue_p50_ms=num_turns,
        queue_p99_ms=2 * num_turns,
    )


@pytest.fixture
def service() -> Service:
    return Service()


def test_a_service_is_all_its_replicas_together(service: Service) -> None:
    service.hear("h:1", a=3, b=1)
    service.hear("h:2", a=1)
    status = service.board.answer(None)
    assert [each.address for each in status.replicas] == ["h:1", "h:2"]
    assert (status.teacher, status.sees_all, status.tenant, status.time_s) == ("toy", True, "", 1000.0)
    first = status.tenants[0]
    assert (first.name, first.num_conversations, first.num_turns, first.weight) == ("a", 2, 4, 2.0)
    assert (first.num_tokens, first.queue_s, first.compute_s, first.num_refusals) == (40, 2.0, 1.0, 2)
    assert (first.queue_p50_ms, first.queue_p99_ms) == (2.5, 6)  # the mean by turns, and the worst
    assert {each.id: each.replica for each in status.conversations} == {
        "h:1-a": "h:1",
        "h:1-b": "h:1",
        "h:2-a": "h:2",
    }
    assert {(each.message, each.replica) for each in status.refusals} == {
        ("of a", "h:1"),
        ("of b", "h:1"),
        ("of a", "h:2"),
    }


def test_no_sum_falls_when_a_replica_goes_or_begins_anew(service: Service) -> None:
    service.hear("h:1", a=3)
    service.hear("h:2", a=5)
    service.now_s += 5
    service.hear("h:2", a=6)
    assert service.turns() == {"a": 9}
    service.began_s.pop("h:1")
    service.hear("h:1", a=1)  # another process at the same address
    assert service.turns() == {"a": 10}
    service.now_s += 700
    assert service.turns() == {"a": 10}
    assert service.board.answer(None).replicas == []
    assert all(number >= 0 for sample in service.history() for number in sample.values())


def test_a_replica_that_was_silent_for_a_while_is_not_counted_twice(service: Service) -> None:
    service.hear("h:1", a=3)
    service.now_s += 60
    assert service.board.answer(None).replicas == []
    service.hear("h:1", a=4)
    assert service.turns() == {"a": 4}
    assert len(service.board.answer(None).replicas) == 1


def test_nor_is_one_that_was_silent_until_it_was_forgotten(service: Service) -> None:
    service.hear("h:1", a=3)
    service.now_s += 700
    assert service.turns() == {"a": 3}
    service.hear("h:1", a=4)
    assert service.turns() == {"a": 3}  # what it did meanwhile is not known any more
    service.now_s += 1
    service.hear("h:1", a=6)
    assert service.turns() == {"a": 5}


def test_conversations_of_a_replica_that_went_are_closed(service: Service) -> None:
    service.hear("h:1", a=3)
    service.now_s += 10
    service.hear("h:2", b=1)
    told = [(each.id, each.closed_s, each.why) for each in service.board.answer(None).conversations]
    assert told == [("h:2-b", 0.0, ""), ("h:1-a", 1000.0, "its replica went away")]
    service.hear("h:1", a=4)
    assert {each.closed_s for each in service.board.answer(None).conversations} == {0.0}
    service.now_s += 601
    assert service.board.answer(None).conversations == []
    assert service.board.answer(None).refusals == []


def test_a_replica_that_leaves_takes_none_but_is_heard_to_the_end(service: Service) -> None:
    service.hear("h:1", a=3)
    service.now_s += 1
    service.hear("h:1", is_leaving=True, a=5)
    status = service.board.answer(None)
    assert status.replicas == []
    assert status.tenants[0].num_turns == 5
    assert status.conversations[0].closed_s == 0


def test_a_board_that_comes_later_takes_what_was_for_no_news(service: Service) -> None:
    service.began_s["h:1"] = service.now_s - 100
    service.hear("h:1", a=1000)
    service.now_s += 2
    service.hear("h:1", a=1001)
    assert service.turns() == {"a": 1001}
    assert service.history() == [{"a": 1}]


def test_a_sample_has_what_was_since_the_one_before(service: Service) -> None:
    for number in range(1, 7):
        service.hear("h:1", a=10 * number, b=1)
        service.hear("h:2", a=number)
        service.now_s += 1
    samples = service.board.answer(None, 600).history
    assert [sample.time_s for sample in samples] == [1002.0, 1004.0, 1006.0]
    # A report of h:1 makes the sample; that of h:2 belongs to the next.
    assert service.history() == [{"a": 32, "b": 1}, {"a": 22}, {"a": 12}]
    assert (samples[0].num_replicas, samples[0].queued_tokens) == (2, 14)
    assert len(service.history(history_s=3)) == 2
    assert service.history(history_s=0) == []


def test_history_ends_after_ten_minutes(service: Service) -> None:
    for number in range(1000):
        service.hear("h:1", a=number)
        service.now_s += 1
    samples = service.board.answer(None, 10_000).history
    assert 299 <= len(samples) <= 301
    assert samples[0].time_s >= service.now_s - 600
    assert samples[-1].time_s >= service.now_s - 2


def test_a_clock_that_is_set_back_ends_no_history(service: Service) -> None:
    service.now_s += 2
    service.hear("h:1", a=1)
    service.now_s -= 3600
    service.hear("h:1", a=2)
    service.now_s += 2
    service.hear("h:1", a=3)
    assert service.history()[-1] == {"a": 1}


def test_samples_stay_in_order_and_end_after_a_clock_that_is_set_back(service: Service) -> None:
    def told() -> list[tuple[float, int]]:
        samples = service.board.answer(None, 600).history
        return [(each.time_s - service.now_s, each.tenants[0].num_turns) for each in samples]

    for number in range(1, 4):
        service.now_s += 2
        service.hear("h:1", a=10**number)
    service.now_s -= 3600
    service.hear("h:1", a=1002)
    assert told() == [(-6, 10), (-4, 90), (-2, 900), (0, 2)]
    service.now_s += 2
    service.hear("h:1", a=1005)
    assert told() == [(-8, 10), (-6, 90), (-4, 900), (-2, 2), (0, 3)]
    service.now_s += 595
    service.hear("h:1", a=1009)
    assert told() == [(-599, 900), (-597, 2), (-595, 3), (0, 4)]


def test_a_tenant_sees_its_own_part_and_the_sums(service: Service) -> None:
    service.hear("h:1", a=3, b=1, platform=1)
    service.board.refused("b", PEER, teacher.REASON_ACCESS_DENIED, "b may not")
    service.board.refused("", PEER, teacher.REASON_ACCESS_DENIED, "no token")
    service.now_s += 2
    status = service.board.answer(Pass("a", "digest"), 60)
    assert (status.tenant, status.sees_all) == ("a", False)
    assert [each.name for each in status.tenants] == ["a"]
    assert [each.tenant for each in status.conversations] == ["a"]
    assert [each.tenant for each in status.refusals] == ["a"]
    assert [[each.name for each in sample.tenants] for sample in status.history] == [["a"]]
    assert [each.queued_tokens for each in status.replicas] == [7]
    text = str(status)
    assert not [word for word in ("10.0.0.1", "h:1-b", "of b", "platform", OTHERS, UNKNOWN) if word in text]


def test_an_operator_sees_everybody(service: Service) -> None:
    service.hear("h:1", a=3, b=1)
    service.board.refused("", PEER, teacher.REASON_ACCESS_DENIED, "no token")
    service.now_s += 2
    status = service.board.answer(OPERATOR, 60)
    assert (status.tenant, status.sees_all) == ("platform", True)
    assert {each.name for each in status.tenants} == {"a", "b", UNKNOWN}
    assert {each.peer for each in status.conversations} == {PEER}
    assert {each.peer for each in status.refusals} == {PEER}
    assert {each.message for each in status.refusals} == {"of a", "of b", "no token"}
    assert status.history[0].tenants


def test_who_has_not_talked_sees_nothing_of_others(service: Service) -> None:
    service.hear("h:1", a=3)
    status = service.board.answer(Pass("new", "digest"), 60)
    assert status.tenants == []
    assert status.conversations == []
    assert status.refusals == []
    assert len(status.replicas) == 1


def test_thousands_of_tenants_take_no_more_than_a_thousand(service: Service) -> None:
    for part in range(5):
        tenants: dict[str, Any] = {f"tenant-{part}-{number}": 1 for number in range(700)}
        service.hear(f"h:{part}", **tenants)
    service.now_s += 2
    status = service.board.answer(None, 60)
    turns = {each.name: each.num_turns for each in status.tenants}
    assert (len(turns), turns[OTHERS], sum(turns.values())) == (MAX_TENANTS + 1, 2500, 3500)
    (sample,) = status.history
    assert len(sample.tenants) == 51
    assert sum(each.num_turns for each in sample.tenants) == 3500
    assert len(status.conversations) == 1000
    assert status.ByteSize() < 1 << 20
    (own,) = service.board.answer(Pass("tenant-0-9", ""), 60).history
    assert [(each.name, each.num_turns) for each in own.tenants] == [("tenant-0-9", 1)]


def test_replicas_that_come_and_go_take_no_more_and_more(service: Service) -> None:
    for _ in range(300):
        service.began_s.pop("h:1", None)
        service.hear("h:1", a=1)
        service.now_s += 1
        service.hear("h:1", a=2)
    assert len(service.board._gone) <= 32
    assert service.turns()["a"] == 600
    service.now_s += 601
    assert service.board.answer(None, 600).conversations == []
    assert (len(service.board._gone), len(service.board._replicas)) == (0, 0)


def test_the_directorys_process_needs_no_torch() -> None:
    import subprocess  # noqa: PLC0415

    code = "import sys, services.teacher.directory_server; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
