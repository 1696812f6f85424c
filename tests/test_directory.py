"""Which replica a student is sent to, and how replicas and directory hear of each other."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING

import grpc
import pytest

from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from services.teacher.config import ServiceConfig
from services.teacher.directory import Directory, Report, Reporter
from services.teacher.directory_server import DirectoryDeployment
from tests.test_serve import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def report(
    name: str, conversations: int = 0, tokens: int = 0, room: int = 10, *, draining: bool = False
) -> Report:
    return Report(name, conversations, tokens, room, 1000, draining)


def addresses(directory: Directory, *, opens: bool = False) -> list[str]:
    return [replica.address for replica in directory.find(opens_conversation=opens)]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_replica_with_the_most_room_comes_first() -> None:
    directory = Directory()
    directory.report(report("half-full", conversations=5))
    directory.report(report("idle"))
    directory.report(report("busy", tokens=900))
    directory.report(report("larger", conversations=5, room=100))
    assert addresses(directory) == ["idle", "larger", "half-full", "busy"]


def test_what_was_reported_is_told() -> None:
    directory = Directory()
    directory.report(report("a", conversations=3, tokens=70))
    assert directory.find(opens_conversation=True) == [
        pb.Replica(address="a", num_conversations=3, queued_tokens=70)
    ]


def test_those_who_open_at_once_are_spread() -> None:
    directory = Directory()
    for name, conversations in (("a", 0), ("b", 0), ("c", 3)):
        directory.report(report(name, conversations))
    first = [addresses(directory, opens=True)[0] for _ in range(9)]
    assert {name: first.count(name) for name in "abc"} == {"a": 4, "b": 4, "c": 1}


def test_asking_without_opening_counts_nothing_and_a_report_replaces_what_was_assumed() -> None:
    directory = Directory()
    directory.report(report("a"))
    directory.report(report("b", conversations=1))
    assert [addresses(directory)[0] for _ in range(5)] == ["a"] * 5
    for _ in range(4):
        addresses(directory, opens=True)
    directory.report(report("a"))  # those who asked did not come
    assert addresses(directory)[0] == "a"


def test_who_drains_or_is_silent_is_left_out() -> None:
    clock = Clock()
    directory = Directory(max_age_s=2.0, clock=clock)
    for name in "abc":
        directory.report(report(name))
    assert [each.address for each in directory.report(report("b", draining=True))] == ["a", "c"]
    clock.now_s += 1.5
    directory.report(report("c"))
    assert addresses(directory) == ["a", "c"]
    clock.now_s += 1.0
    assert addresses(directory) == ["c"]
    directory.report(report("a"))
    assert sorted(addresses(directory)) == ["a", "c"]


def test_a_copy_keeps_what_it_was_told_last() -> None:
    copy = Directory.copy()
    assert addresses(copy) == []
    copy.learn([report("a", conversations=1), report("b")])
    assert addresses(copy) == ["b", "a"]
    copy.learn([report("a")])
    assert addresses(copy) == ["a"]


def reporting(send: Callable[[Report], Awaitable[list[Report]]], rounds: int) -> list[list[Report]]:
    """Runs a reporter until it has learned something so many times; returns what."""

    async def run() -> list[list[Report]]:
        learned: list[list[Report]] = []
        enough = asyncio.Event()

        def learn(reports: list[Report]) -> None:
            learned.append(reports)
            if len(learned) == rounds:
                enough.set()

        reporter = Reporter(lambda: report("a", conversations=len(learned)), send, learn, period_s=0.0)
        reporter.start()
        async with asyncio.timeout(10):
            await enough.wait()
        reporter.stop()
        return learned[:rounds]

    return asyncio.run(run())


def test_a_replica_reports_again_and_again_and_learns_of_the_others() -> None:
    directory = Directory()
    directory.report(report("b"))

    async def send(mine: Report) -> list[Report]:
        return directory.report(mine)

    assert reporting(send, rounds=3) == [
        [report("b"), report("a", conversations=number)] for number in range(3)
    ]


def test_a_directory_that_fails_is_tried_again_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    num_sent = 0

    async def send(mine: Report) -> list[Report]:
        nonlocal num_sent
        num_sent += 1
        if num_sent <= 3:
            raise RuntimeError("it is being restarted")
        return [mine]

    assert reporting(send, rounds=1) == [[report("a")]]
    assert [record.message for record in caplog.records] == [
        "the directory does not hear this replica: RuntimeError('it is being restarted')"
    ]


def test_news_are_reported_without_waiting() -> None:
    async def run() -> None:
        sent = asyncio.Queue[Report]()

        async def send(mine: Report) -> list[Report]:
            await sent.put(mine)
            return [mine]

        reporter = Reporter(lambda: report("a"), send, lambda _: None, period_s=3600.0)
        reporter.start()
        async with asyncio.timeout(10):
            await sent.get()
            reporter.hurry()
            await sent.get()
        reporter.stop()

    asyncio.run(run())


def test_a_report_travels_between_processes() -> None:
    assert pickle.loads(pickle.dumps(report("a", 1, 2))) == report("a", 1, 2)  # noqa: S301 - our own bytes


def test_the_service_answers_at_its_address_once_a_replica_has_reported() -> None:
    async def run() -> None:
        port = free_port()
        address = f"127.0.0.1:{port}"
        deployment = DirectoryDeployment(ServiceConfig(auth="none", port=port))
        assert await deployment.report(report("b", draining=True)) == []
        async with grpc.aio.insecure_channel(address) as channel:
            stub = TeacherServiceStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.aio.AioRpcError) as nobody:
                await stub.FindReplicas(pb.FindReplicasRequest())
            assert nobody.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await deployment.report(report("a")) == [report("a")]
            response = await stub.FindReplicas(pb.FindReplicasRequest(opens_conversation=True))
            assert [replica.address for replica in response.replicas] == ["a"]
            for other in (stub.DescribeTeacher(pb.DescribeTeacherRequest()), stub.Converse().read()):
                with pytest.raises(grpc.aio.AioRpcError, match="FindReplicas says where") as elsewhere:
                    await other
                assert elsewhere.value.code() is grpc.StatusCode.UNAVAILABLE
        assert deployment._server is not None
        await deployment._server.stop(None)

    asyncio.run(run())


def test_a_port_that_the_last_directory_still_has_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        config = ServiceConfig(auth="none", port=free_port())
        old, new = DirectoryDeployment(config), DirectoryDeployment(config)
        await old.report(report("a"))
        assert await new.report(report("a")) == [report("a")]
        assert new._server is None
        assert "nobody can ask for replicas yet" in caplog.text
        assert old._server is not None
        await old._server.stop(None)
        await new.report(report("a"))
        assert new._server is not None
        await new._server.stop(None)

    asyncio.run(run())
