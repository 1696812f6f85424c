"""Tenants' tokens on the wire: who is let in, as whom, and for how long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from services.teacher.tenants import Tenants, new_key
from student_client import AccessError, ClientOptions, OverloadedError, TeacherClient
from student_client.config import TrainConfig
from student_client.credentials import metadata_of
from student_client.options import TlsOptions
from tests.test_tenant_file import file, invoke
from tests.toy import STUDENT_DIM
from tests.toy_server import ToyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher
    from student_client import TeacherTalk

__all__ = ["file"]

HASTE: dict[str, Any] = {"connect_timeout_s": 5, "answer_timeout_s": 5, "deadline_s": 5}


def token_file(file: Path, token: str) -> Path:
    path = file.with_name(f"{token.partition('.')[0]}.token")
    path.write_text(token + "\n")
    return path


@pytest.fixture
def guarded(tiny_teacher: Teacher, service_config: ServiceConfig, file: Path) -> Iterator[ToyServer]:
    """A server that lets in whom the file says; there is nobody yet."""
    Tenants(tenants={}).save(file)
    server = ToyServer(tiny_teacher, service_config.model_copy(update={"auth": "tokens", "tenants": file}))
    server.start()
    yield server
    server.close()


def options_of(file: Path, token: str) -> ClientOptions:
    return ClientOptions(**HASTE, token_file=token_file(file, token))


def test_without_a_good_token_nothing_is_said_and_nothing_computed(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRECEPTOR_TOKEN", raising=False)
    stranger, _ = new_key("stranger")
    for options, hint in (
        (ClientOptions(**HASTE), "authorization: got none.*name a token_file .*, or set PRECEPTOR_TOKEN"),
        (options_of(file, stranger), "authorization: got a token.*ask whoever runs the teacher for another"),
    ):
        with pytest.raises(AccessError, match=hint):
            TeacherClient(guarded.address, options).describe()
        with pytest.raises(AccessError, match=hint):
            connect(guarded.address, options=options)(torch.randn(1, 2, STUDENT_DIM))
    assert guarded.servicer._visits == {}
    monkeypatch.setenv("PRECEPTOR_TOKEN", invoke("add", file, "support"))
    assert TeacherClient(guarded.address, ClientOptions(**HASTE)).describe().teacher.name
    connect(guarded.address)(torch.randn(1, 2, STUDENT_DIM))


def test_a_team_is_whom_its_token_names_whatever_it_says(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk]
) -> None:
    options = options_of(file, invoke("add", file, "support"))
    talk = connect(guarded.address, options=options, tenant="sales")
    torch.autograd.backward(talk(torch.randn(1, 2, STUDENT_DIM)).decoded.sum())
    assert [visit.conversation.tenant for visit in guarded.servicer._visits.values()] == ["support"]


def test_a_revoked_teams_conversations_end_and_others_go_on(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk]
) -> None:
    states = torch.randn(1, 2, STUDENT_DIM)
    talks = [connect(guarded.address, options=options_of(file, invoke("add", file, name))) for name in "ab"]
    for talk in talks:
        talk(states)
    invoke("revoke", file, "a")
    guarded.wait_until(lambda: len(guarded.servicer._visits) == 1)
    with pytest.raises(AccessError, match="authorization"):
        talks[0](states)
    talks[1](states)
    assert talks[1].conversation.num_reconnects == 0


def test_a_team_has_no_more_conversations_than_it_may(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk]
) -> None:
    options = options_of(file, invoke("add", file, "support", "--max-conversations", 1))
    other = options_of(file, invoke("add", file, "sales"))
    states = torch.randn(1, 2, STUDENT_DIM)
    first = connect(guarded.address, options=options)
    first(states)
    with pytest.raises(OverloadedError, match="conversations of support: got one more, expected at most 1"):
        connect(guarded.address, options=options)(states)
    connect(guarded.address, options=other)(states)
    first(states)


def test_a_team_talks_to_the_teachers_it_may_talk_to(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk]
) -> None:
    here = guarded.config.name
    elsewhere = options_of(file, invoke("add", file, "sales", "--teacher", "other"))
    both = options_of(file, invoke("add", file, "support", "--teacher", "other", "--teacher", here))
    states = torch.randn(1, 2, STUDENT_DIM)
    with pytest.raises(AccessError, match=f"authorization: sales may not talk to {here}"):
        connect(guarded.address, options=elsewhere)(states)
    talk = connect(guarded.address, options=both)
    talk(states)
    invoke("change", file, "support", "--teacher", "other")
    guarded.wait_until(lambda: not guarded.servicer._visits)
    with pytest.raises(AccessError, match="authorization"):
        talk(states)


def test_shares_and_queued_tokens_of_a_team_follow_the_file(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk]
) -> None:
    options = options_of(file, invoke("add", file, "support", "--weight", 2, "--max-queued-tokens", 3))
    states = torch.randn(1, 2, STUDENT_DIM)
    talk, other = (connect(guarded.address, options=each) for each in (options, options))
    talk(states)
    other(states)
    gate = guarded.gate
    assert gate is not None
    assert (gate.weights, gate.max_queued_tokens) == ({"support": 2.0}, {"support": 3})
    guarded.queue.gate.clear()
    pending = [talk.start(states)]
    guarded.queue.await_arrivals(3)
    pending.append(talk.start(states))  # the first is with the engine, this one waits
    guarded.queue.await_arrivals()
    refused = other.start(states)
    guarded.queue.await_refusals()
    invoke("change", file, "support", "--max-queued-tokens", 4, "--weight", 3)
    guarded.wait_until(lambda: gate.max_queued_tokens == {"support": 4})  # those who are watched have it read
    assert gate.weights == {"support": 3.0}
    guarded.queue.gate.set()
    assert all(each.result().decoded.shape == states.shape for each in (*pending, refused))


def test_no_team_takes_all_conversations_unless_it_is_told_that_it_may(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = guarded.servicer._limits.model_copy(update={"max_conversations": 3})
    monkeypatch.setattr(guarded.servicer, "_limits", limits)
    options = options_of(file, invoke("add", file, "support"))
    other = options_of(file, invoke("add", file, "sales"))
    states = torch.randn(1, 2, STUDENT_DIM)
    for _ in range(2):
        connect(guarded.address, options=options)(states)
    with pytest.raises(OverloadedError, match="conversations of support: got one more, expected at most 2"):
        connect(guarded.address, options=options)(states)
    connect(guarded.address, options=other)(states)


def test_a_token_is_shown_under_tls_or_on_this_machine_only(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRECEPTOR_TOKEN", raising=False)
    assert metadata_of(ClientOptions(), "10.0.0.1:1") == ()
    monkeypatch.setenv("PRECEPTOR_TOKEN", "a.0123456789abcdef")
    shown = (("authorization", "Bearer a.0123456789abcdef"),)
    assert metadata_of(ClientOptions(), "127.0.0.1:1") == metadata_of(ClientOptions(), "[::1]:1") == shown
    assert metadata_of(ClientOptions(tls=TlsOptions()), "teacher.example:1") == shown
    assert metadata_of(ClientOptions(insecure=True), "teacher.example:1") == shown
    for target in ("10.0.0.1:1", "teacher.example:1"):
        with pytest.raises(AccessError, match=r"not shown to .* in the clear"):
            metadata_of(ClientOptions(), target)
    with pytest.raises(AccessError, match=r"token_file: .*missing can't be read"):
        metadata_of(ClientOptions(token_file=file.with_name("missing")), "127.0.0.1:1")
    fields = {"teacher": {"options": {"token_file": "a.token"}}}
    resolved = TrainConfig.resolve(fields, file.parent)
    assert resolved["teacher"]["options"]["token_file"] == file.parent / "a.token"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"support",
        b"support.secret secret-of-another-team",
        "support.geheim-ü-geheim-geheim".encode("utf-16"),
    ],
)
def test_what_is_no_token_is_told_without_it(file: Path, content: bytes) -> None:
    path = file.with_name("support.token")
    path.write_bytes(content)
    with pytest.raises(AccessError, match=r"support\.token: got something that is no token") as told:
        metadata_of(ClientOptions(token_file=path), "127.0.0.1:1")
    assert "geheim" not in repr(told.value)
    assert "secret" not in repr(told.value)
