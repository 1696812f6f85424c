"""GetStatus on the wire: of replicas and of the directory, with tokens and without."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest
import torch

from preceptor.v1 import status_pb2 as pb
from preceptor.v1 import teacher_pb2 as teacher
from services.teacher import access
from services.teacher.config import ServiceConfig
from services.teacher.directory import Report
from services.teacher.directory_server import DirectoryDeployment
from services.teacher.own_status import OwnStatus
from services.teacher.tenants import Tenants, new_key
from tests.test_serve import free_port
from tests.test_tenant_access import guarded, options_of
from tests.test_tenant_file import file, invoke
from tests.toy import STUDENT_DIM
from tests.toy_frames import backward, exchange, message, opening, set_codec
from tests.toy_server import RawStudent
from tests.toy_service import status_told

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from student_client import TeacherTalk
    from tests.toy_server import ToyServer

__all__ = ["file", "guarded"]


def turn(talk: TeacherTalk) -> None:
    torch.autograd.backward(talk(torch.randn(2, 3, STUDENT_DIM)).decoded.sum())


def test_a_bare_replica_tells_all_where_no_tokens_are_asked_for(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    own, nameless = connect(server.address, tenant="support"), connect(server.address)
    for talk in (own, own, nameless):
        turn(talk)
    status = status_told(server.address)
    assert (status.sees_all, status.tenant, status.teacher) == (True, "", server.config.name)
    (replica,) = status.replicas
    assert (replica.num_conversations, replica.num_computed, replica.num_retained) == (2, 6, 3)
    assert replica.memory_bytes > 1 << 20
    assert replica.num_passes <= replica.num_tenants_in_passes
    assert {each.name: each.num_turns for each in status.tenants} == {"support": 4, "(unnamed)": 2}
    assert {each.tenant: each.num_turns for each in status.conversations} == {"support": 4, "(unnamed)": 2}
    assert {each.peer.partition(":")[0] for each in status.conversations} == {"ipv4"}
    own.close()
    server.wait_until(lambda: len(server.servicer._visits) == 1)
    first, last = status_told(server.address).conversations
    assert (first.tenant, first.closed_s) == ("(unnamed)", 0)
    assert (last.tenant, last.why) == ("support", "the student left")


def test_each_tenant_sees_itself_and_an_operator_both(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk]
) -> None:
    tokens = {name: invoke("add", file, name, "--weight", 3) for name in ("support", "sales")}
    tokens["platform"] = invoke("add", file, "platform", "--operator")
    for number, token in enumerate(tokens.values(), 1):
        talk = connect(guarded.address, options=options_of(file, token), tenant="somebody-else")
        for _ in range(number):
            turn(talk)
    for name in ("support", "sales"):
        status = status_told(guarded.address, tokens[name])
        assert (status.tenant, status.sees_all) == (name, False)
        assert [(each.name, each.weight) for each in status.tenants] == [(name, 3)]
        assert [(each.tenant, each.peer) for each in status.conversations] == [(name, "")]
        others = {"support", "sales", "platform", "somebody-else"} - {name}
        assert not [word for word in others if word in str(status)]
    status = status_told(guarded.address, tokens["platform"])
    assert (status.tenant, status.sees_all) == ("platform", True)
    assert {each.name: each.num_turns for each in status.tenants} == {"support": 2, "sales": 4, "platform": 6}
    assert all(each.peer.startswith("ipv4:127.0.0.1:") for each in status.conversations)
    invoke("change", file, "platform", "--no-operator")
    assert not status_told(guarded.address, tokens["platform"]).sees_all


def test_nobody_is_told_anything_without_a_good_token(guarded: ToyServer, file: Path) -> None:
    operator = invoke("add", file, "platform", "--operator")
    elsewhere = invoke("add", file, "sales", "--teacher", "other", "--operator")
    stranger, _ = new_key("platform")
    for token in (None, stranger, elsewhere):
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as denied:
                status_told(guarded.address, token)
            assert denied.value.code() is grpc.StatusCode.UNAUTHENTICATED
    told = status_told(guarded.address, operator)
    assert {(each.tenant, each.reason, each.count) for each in told.refusals} == {
        ("", teacher.REASON_ACCESS_DENIED, 4),
        ("sales", teacher.REASON_ACCESS_DENIED, 2),
    }
    assert {each.name: each.num_refusals for each in told.tenants} == {"(unknown)": 4, "sales": 2}
    assert all(secret not in str(told) for secret in (stranger, elsewhere, operator))


def test_a_tenant_that_asks_without_end_is_refused_and_others_are_not(
    guarded: ToyServer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_statuses", access._Frequency(3, lambda: 7.0))
    eager, other = invoke("add", file, "sales"), invoke("add", file, "support")
    for _ in range(3):
        status_told(guarded.address, eager)
    with pytest.raises(grpc.RpcError, match="sales asked more than") as refused:
        status_told(guarded.address, eager)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status_told(guarded.address, other).tenant == "support"


def test_a_conversation_that_the_service_ends_says_why(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk]
) -> None:
    operator = invoke("add", file, "platform", "--operator")
    turn(connect(guarded.address, options=options_of(file, invoke("add", file, "support"))))
    invoke("revoke", file, "support")
    guarded.wait_until(lambda: not guarded.servicer._visits)
    status = status_told(guarded.address, operator)
    (conversation,), (refusal,) = status.conversations, status.refusals
    assert (conversation.why, conversation.num_refusals) == ("the token was revoked or has expired", 1)
    assert (refusal.tenant, refusal.reason) == ("support", teacher.REASON_ACCESS_DENIED)
    assert refusal.conversation == conversation.id


def test_a_refused_turn_appears_with_what_the_student_was_told(
    start_server: Callable[..., ToyServer],
) -> None:
    server = start_server()
    with RawStudent(server.address) as student:
        student.ask(opening(tenant="support"))
        student.send(set_codec())
        bad = message()
        bad[0, 0, 0] = float("nan")
        told = [student.ask(exchange(1, bad)).failed for _ in range(3)]
        told.append(student.ask(backward(7)).failed)
        student.ask(exchange(2))
        status = status_told(server.address)
        (conversation,) = status.conversations
        assert [(each.reason, each.message, each.count) for each in status.refusals] == [
            (told[3].reason, told[3].message, 1),
            (told[0].reason, told[0].message, 3),
        ]
        assert {each.conversation for each in status.refusals} == {conversation.id}
        (tenant,) = status.tenants
        assert (tenant.num_refusals, tenant.num_turns) == (4, 1)
        assert (conversation.num_refusals, conversation.num_turns) == (4, 1)


def test_a_conversation_that_found_no_room_appears(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server(max_conversations=1)
    turn(connect(server.address))
    with RawStudent(server.address) as student:
        failed = student.ask(opening()).failed
    (refusal,) = status_told(server.address).refusals
    assert (refusal.reason, refusal.message) == (failed.reason, failed.message)
    assert (refusal.tenant, refusal.conversation) == ("", "")


def test_a_full_queue_is_counted_at_each_repeat_and_the_turn_once(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server(max_queued_tokens=1)
    talk = connect(server.address, tenant="support")
    turn(talk)
    server.queue.await_arrivals(2)
    server.queue.gate.clear()
    pending = [talk.start(torch.randn(2, 3, STUDENT_DIM)) for _ in range(2)]
    server.queue.await_arrivals(2)  # the engine has one, the other waits
    refused = talk.start(torch.randn(2, 3, STUDENT_DIM))
    server.queue.await_refusals(2)
    server.queue.gate.set()
    for each in (*pending, refused):
        each.result()
    (refusal,) = status_told(server.address).refusals
    (tenant,) = status_told(server.address).tenants
    assert refusal.reason == teacher.REASON_OVERLOADED
    assert refusal.count == tenant.num_refusals >= 2
    assert tenant.num_turns == 5


def test_two_tenants_share_what_their_pass_took_by_tokens(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    with RawStudent(server.address) as first, RawStudent(server.address) as second:
        for student, name in ((first, "a"), (second, "b")):
            student.ask(opening(tenant=name))
            student.send(set_codec())
        server.queue.gate.clear()
        first.send(exchange(1))
        server.queue.await_arrivals()
        server.wait_until(lambda: not server.queue.num_queued_tokens)  # held by the gate, alone
        first.send(exchange(2, message(3)))
        second.send(exchange(1, message(1)))
        server.queue.await_arrivals(2)
        server.queue.gate.set()
        alone, shared = first.receive().reply.receipt, first.receive().reply.receipt
        assert second.receive().reply.receipt.num_tenants == shared.num_tenants == 2
    shares = {each.name: 1000 * each.compute_s for each in status_told(server.address).tenants}
    assert shares["a"] == pytest.approx(alone.compute_ms + shared.compute_ms * 3 / 4)
    assert shares["b"] == pytest.approx(shared.compute_ms / 4)
    (replica,) = status_told(server.address).replicas
    assert (replica.num_passes, replica.num_computed, replica.num_tenants_in_passes) == (2, 3, 3)


def test_a_replica_keeps_a_history_of_itself(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    now_s = [1e9]
    own = OwnStatus(server.engine, server.config, None, lambda: now_s[0])
    talk = connect(server.address, tenant="support")
    for _ in range(3):
        turn(talk)
        now_s[0] += 2
        own.look()
        own.look()
    history = own.answer(None, 60).history
    assert [[(each.name, each.num_turns) for each in sample.tenants] for sample in history] == [
        [("support", 2)]
    ] * 3
    assert own.report("h:1") != b""
    assert own.report("h:1") == b""  # a moment ago
    assert [each.address for each in own.answer(None, 0).replicas] == ["h:1"]


def test_the_directory_answers_for_all_and_replicas_do_not_hear_it_of_each_other(file: Path) -> None:
    Tenants(tenants={}).save(file)
    operator, team = invoke("add", file, "platform", "--operator"), invoke("add", file, "support")

    def report(address: str, name: str) -> Report:
        status = pb.GetStatusResponse(
            replicas=[pb.ReplicaStatus(address=address)], tenants=[pb.TenantStatus(name=name, num_turns=3)]
        )
        return Report(address, 1, 0, 10, 10, status=status.SerializeToString())

    async def run() -> None:
        config = ServiceConfig(port=free_port(), tenants=file)
        deployment = DirectoryDeployment(config)
        await deployment.report(report("h:1", "support"))
        heard = await deployment.report(report("h:2", "sales"))
        assert [each.status for each in heard] == [b"", b""]
        address = f"127.0.0.1:{config.port}"
        with pytest.raises(grpc.RpcError, match="authorization: got none"):
            await asyncio.to_thread(status_told, address)
        everything = await asyncio.to_thread(status_told, address, operator)
        assert [each.address for each in everything.replicas] == ["h:1", "h:2"]
        assert {each.name for each in everything.tenants} == {"support", "sales", "(unknown)"}
        assert [each.reason for each in everything.refusals] == [teacher.REASON_ACCESS_DENIED]
        own = await asyncio.to_thread(status_told, address, team)
        assert [each.name for each in own.tenants] == ["support"]
        assert own.refusals == []
        assert deployment._server is not None
        await deployment._server.stop(None)

    asyncio.run(run())


def test_a_status_that_fails_takes_no_replica_from_the_students(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    start_server: Callable[..., ToyServer],
    connect: Callable[..., TeacherTalk],
) -> None:
    server = start_server()
    monkeypatch.setattr(server.engine, "load", None)
    own = OwnStatus(server.engine, server.config, None)
    assert (own.report("h:1"), own.report("h:1")) == (b"", b"")
    turn(connect(server.address))

    async def run() -> None:
        deployment = DirectoryDeployment(ServiceConfig(auth="none", port=free_port()))
        for _ in range(2):
            heard = await deployment.report(Report("h:1", 1, 0, 10, 10, status=b"\xff"))
            assert [each.address for each in heard] == ["h:1"]
        assert deployment._server is not None
        await deployment._server.stop(None)

    asyncio.run(run())
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "this replica can't tell how it is",
        "h:1: what it tells of itself is not understood",
    ]
