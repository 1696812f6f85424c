"""`preceptor status` and what it shows."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
import torch
from rich.console import Console

from preceptor.names import UNKNOWN
from preceptor.v1 import status_pb2 as pb
from preceptor.v1 import teacher_pb2 as teacher
from preceptor.v1.teacher_pb2_grpc import TeacherServiceServicer, add_TeacherServiceServicer_to_server
from student_client import ClientOptions, TeacherUnavailableError
from student_client.client import TeacherClient
from student_client.status import advice_on, get_status, shares
from student_client.status_cli import _follow
from student_client.status_table import _span, status_tables
from tests.test_cli import run
from tests.test_describe import error_of
from tests.test_tenant_access import guarded, options_of, token_file
from tests.test_tenant_file import file, invoke
from tests.toy import STUDENT_DIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from student_client import TeacherTalk
    from tests.toy_server import ToyServer

__all__ = ["file", "guarded"]


def _turn(talk: TeacherTalk) -> None:
    torch.autograd.backward(talk(torch.randn(2, 3, STUDENT_DIM)).decoded.sum())


def _text(status: pb.GetStatusResponse, problem: str = "", width: int = 160) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(status_tables(status, problem))
    return out.getvalue()


def test_a_bare_servers_status_is_printed_once_where_there_is_no_terminal(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address, tenant="support")
    _turn(talk)
    result = run("status", server.address)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"teacher {server.config.name}, service 0.1.0; sees everybody")
    (tenant,) = (line.split() for line in lines if line.strip().startswith("support"))
    assert tenant[:3] == ["support", "1", "2"]
    assert "conversations: 1 open" in result.stdout
    assert "replicas: 1" in result.stdout


def test_json_is_one_object_with_numbers_and_names(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    _turn(connect(server.address, tenant="support"))
    result = run("status", server.address, "--json")
    facts = json.loads(result.stdout)
    assert facts["tenants"][0]["name"] == "support"
    assert facts["tenants"][0]["num_turns"] == 2
    assert facts["replicas"][0]["num_computed"] == 2  # a number, where protobuf's own JSON has a text
    assert set(facts) == {*pb.GetStatusResponse.DESCRIPTOR.fields_by_name, "shares"}


def test_a_tenant_sees_its_own_part_and_an_operator_all(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk]
) -> None:
    words = {}
    for name, flag in (("support", ()), ("sales", ()), ("platform", ("--operator",))):
        token = invoke("add", file, name, *flag)
        token_file(file, token)
        words[name] = str(file.with_name(f"{name}.token"))
        _turn(connect(guarded.address, options=options_of(file, token)))
    own = run("status", guarded.address, "--token-file", words["support"])
    assert "support sees its own part" in own.stdout
    assert "your conversations: 1 open" in own.stdout
    assert "sales" not in own.stdout
    everything = run("status", guarded.address, "--token-file", words["platform"])
    assert "platform sees everybody" in everything.stdout
    assert all(name in everything.stdout for name in words)


@pytest.fixture
def old_service() -> Iterator[str]:
    """A service of before GetStatus."""
    server = grpc.server(ThreadPoolExecutor(1))
    add_TeacherServiceServicer_to_server(TeacherServiceServicer(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_mistakes_have_their_exit_code_and_reason(guarded: ToyServer, old_service: str, file: Path) -> None:
    for words, code, message in (
        (("nonsense",), 2, "expected preceptor://"),
        (("127.0.0.1:1", "--key", str(file)), 2, "expected both or none"),
        (("127.0.0.1:1",), 4, "no replica of"),
        ((guarded.address,), 1, "token_file"),
        ((old_service,), 1, "too old to say how it is"),
    ):
        for extra in ((), ("--json",)):
            result = run("status", *words, *extra)
            assert (result.exit_code, result.stdout) == (code, "")
            assert message in result.stderr.replace("\n", " ")


def test_help_teaches() -> None:
    text = run("status", "--help").output
    assert all(word in text for word in ("--once", "--json", "--token-file", "Ctrl-C", "Example"))


def test_grpcs_own_words_do_not_stand_beside_the_error() -> None:
    (line,) = error_of("status", "127.0.0.1:1").splitlines()
    assert line.startswith("error: no replica of")


def test_the_first_address_that_answers_is_enough(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    assert get_status(TeacherClient(f"127.0.0.1:1,{server.address}")).teacher == server.config.name
    with pytest.raises(TeacherUnavailableError, match=r"127\.0\.0\.1:2"):
        get_status(TeacherClient("127.0.0.1:1,127.0.0.1:2", ClientOptions(connect_timeout_s=1)))


def test_it_goes_on_while_the_service_is_away(
    start_server: Callable[..., ToyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server()
    client = TeacherClient(server.address, ClientOptions(connect_timeout_s=1))
    first, out = get_status(client), io.StringIO()
    server.kill()
    rounds = iter(range(3))

    def pause(_: float) -> None:
        if next(rounds, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("student_client.status_cli.time.sleep", pause)
    try:
        with pytest.raises(KeyboardInterrupt):
            _follow(client, first, Console(file=out, width=200, force_terminal=True, height=60))
    finally:
        server.start()
    assert "no newer status: no replica of" in out.getvalue()


def _status(*, sees_all: bool) -> pb.GetStatusResponse:
    """Two tenants on two replicas, of which the second one's part is told only to those who see all."""
    mine = pb.TenantStatus(name="support", num_turns=4, weight=1.0)
    other = pb.TenantStatus(name="sales", num_turns=4, weight=3.0)
    idle = pb.TenantStatus(name="idle", weight=5.0)
    status = pb.GetStatusResponse(
        time_s=110.0, teacher="t", sees_all=sees_all, tenants=[mine, *([other, idle] if sees_all else [])]
    )
    for time_s in (100.0, 102.0, 104.0):
        own = pb.TenantSample(name="support", compute_s=0.5)
        others = pb.TenantSample(name="sales", compute_s=1.5)
        status.history.add(
            time_s=time_s, tenants=[own, *([others] if sees_all else [])], busy_share=0.75, num_replicas=2
        )
    return status


def test_what_was_had_stands_beside_what_the_weight_gives() -> None:
    everything = shares(_status(sees_all=True))
    assert {name: (share.had, share.due) for name, share in everything.items()} == {
        "support": (0.25, 0.25),
        "sales": (0.75, 0.75),
    }
    own = shares(_status(sees_all=False))["support"]
    assert own.had == pytest.approx(1.5 / 6.0)  # 4 s x 0.75 x 2 replicas
    assert own.due is None
    assert shares(pb.GetStatusResponse(sees_all=True)) == {}


def test_refusals_have_their_reason_and_what_to_do() -> None:
    status = _status(sees_all=True)
    for reason in (teacher.REASON_NOT_FINITE, teacher.REASON_OVERLOADED):
        status.refusals.add(
            time_s=50.0, tenant="[bold]x", reason=reason, message="reply[0]: got nan", count=7
        )
        status.refusals.add(time_s=50.0, reason=reason, message="of a stranger")
    text = " ".join(_text(status, width=200).split())
    assert all(word in text for word in ("1m 0s", "[bold]x", UNKNOWN, "7", "not finite", "reply[0]: got nan"))
    assert "clipped gradients" in text
    told = {advice_on(teacher.Reason.Value(name)) for name in teacher.Reason.keys()[1:]}
    assert advice_on(teacher.REASON_UNSPECIFIED) not in told  # each known reason has an advice of its own


def test_closed_conversations_say_why_and_the_rest_is_counted() -> None:
    status = _status(sees_all=True)
    for number in range(20):
        closed = {"closed_s": 100.0, "why": "the student left"} if number < 15 else {}
        status.conversations.add(id=f"c{number}", opened_s=90.0, num_turns=2, queue_s=0.5, **closed)
    text = _text(status)
    assert "conversations: 5 open; 5 more not shown" in text
    assert text.index("c19") < text.index("c0 ")
    assert "closed 10s ago: the student left" in text
    assert "250.0" in text


def test_a_service_without_replicas_says_so() -> None:
    text = _text(pb.GetStatusResponse(teacher="t", tenant="support"), problem="gone")
    assert "no replica takes conversations" in text
    assert "support sees its own part" in text
    assert "no newer status: gone; trying again" in text
    assert [_span(seconds) for seconds in (-1, 59, 61, 3700, 90000)] == [
        "0s",
        "59s",
        "1m 1s",
        "1h 1m",
        "1d 1h",
    ]
