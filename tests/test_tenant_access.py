"""Tenants' tokens: who is let in, with what, and for how long."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from services.teacher.tenant_cli import app
from services.teacher.tenants import AccessDeniedError, Gate, Tenant, TenantKey, Tenants, new_key
from student_client import AccessError, ClientOptions, OverloadedError, TeacherClient
from student_client.config import TrainConfig
from student_client.credentials import metadata_of
from student_client.options import TlsOptions
from tests.toy import STUDENT_DIM
from tests.toy_server import ToyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher
    from student_client import TeacherTalk

HASTE: dict[str, Any] = {"connect_timeout_s": 5, "answer_timeout_s": 5, "deadline_s": 5}


def invoke(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done.stdout.strip() if code == 0 else done.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tenants.yaml"


def token_file(file: Path, token: str) -> Path:
    path = file.with_name(f"{token.partition('.')[0]}.token")
    path.write_text(token + "\n")
    return path


def bearer(token: str) -> list[tuple[str, str]]:
    return [("user-agent", "x"), ("authorization", f"Bearer {token}")]


class Clock:
    """A clock that is set by hand; a gate looks at its file at most once a second."""

    def __init__(self) -> None:
        self.now_s = datetime.now(UTC).timestamp()

    def __call__(self) -> float:
        self.now_s += 2
        return self.now_s


def test_a_token_lets_its_team_in_and_nothing_else_does(file: Path) -> None:
    support, sales = invoke("add", file, "support"), invoke("add", file, "sales", "--max-conversations", 3)
    gate = Gate(file)
    assert gate.admit(bearer(support)).tenant == "support"
    assert gate.admit(bearer(sales)).max_conversations == 3
    secret = support.partition(".")[2]
    wrong = [
        "",
        "support",
        "support.",
        f"sales.{secret}",
        f"nobody.{secret}",
        support[:-1],
        support + "x",
        secret,
    ]
    for token in wrong:
        with pytest.raises(AccessDeniedError) as told:
            gate.admit(bearer(token))
        assert secret[:8] not in str(told.value)
    for metadata in (None, [], bearer(support) + bearer(support), [("authorization", f"Basic {support}")]):
        with pytest.raises(AccessDeniedError, match="authorization: got none, expected `Bearer TOKEN`"):
            gate.admit(metadata)


def test_secrets_are_long_and_only_their_salted_digests_are_kept(file: Path) -> None:
    tokens = [invoke("add", file, f"team-{number}") for number in range(8)]
    secrets = {token.partition(".")[2] for token in tokens}
    assert len(secrets) == 8
    assert all(len(secret) >= 43 for secret in secrets)  # 256 bits in base64
    text = file.read_text()
    assert not any(secret in text for secret in secrets)
    keys = [tenant.keys[0] for tenant in Tenants.load(file).tenants.values()]
    assert len({key.salt for key in keys}) == 8
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_rotated_token_ends_after_a_while_and_a_revoked_one_at_once(file: Path) -> None:
    clock = Clock()
    first = invoke("add", file, "support")
    gate = Gate(file, clock)
    shown = gate.admit(bearer(first))
    second = invoke("rotate", file, "support", "--keep-hours", 1)
    assert gate.admit(bearer(second)).tenant == "support"
    assert gate.admit(bearer(first)) == shown
    assert gate.allows(shown)
    clock.now_s += 3600
    assert not gate.allows(shown)
    with pytest.raises(AccessDeniedError, match="not known, or not any more"):
        gate.admit(bearer(first))
    newer = gate.admit(bearer(second))
    third = invoke("rotate", file, "support", "--keep-hours", 0)
    assert not gate.allows(newer)
    assert gate.allows(gate.admit(bearer(third)))
    invoke("revoke", file, "support")
    with pytest.raises(AccessDeniedError):
        gate.admit(bearer(third))
    assert gate.admit(bearer(invoke("add", file, "support"))).tenant == "support"


def test_a_team_expires(file: Path) -> None:
    clock = Clock()
    token = invoke("add", file, "support", "--days", 1)
    gate = Gate(file, clock)
    shown = gate.admit(bearer(token))
    clock.now_s += 25 * 3600
    assert not gate.allows(shown)
    with pytest.raises(AccessDeniedError):
        gate.admit(bearer(token))


def test_a_file_that_is_broken_for_a_while_changes_nothing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = invoke("add", file, "support")
    gate = Gate(file, Clock())
    shown = gate.admit(bearer(token))
    good = file.read_text()
    for text in ("tenants: [", "tenants: {support: {colour: red}}"):
        file.write_text(text)
        assert gate.allows(shown)
        assert gate.admit(bearer(token)) == shown
    assert "the tenants stay what they were" in caplog.text
    file.unlink()
    assert gate.allows(shown)
    file.write_text(good.replace("support", "renamed"))
    assert not gate.allows(shown)


def test_the_commands_teach_and_refuse(file: Path) -> None:
    invoke("add", file, "support", "--days", 2, "--max-conversations", 4)
    assert "is there already" in invoke("add", file, "support", code=2)
    assert "expected small letters" in invoke("add", file, "Sales Team", code=2)
    assert "expected one of support" in invoke("revoke", file, "sales", code=2)
    assert "can't be read" in invoke("list", file.with_name("missing.yaml"), code=2)
    (facts,) = json.loads(invoke("list", file, "--json"))
    assert (facts["name"], facts["tokens"], facts["max_conversations"]) == ("support", 1, 4)
    assert CliRunner().invoke(app, ["list", str(file)]).exit_code == 0


@pytest.fixture
def guarded(tiny_teacher: Teacher, service_config: ServiceConfig, file: Path) -> Iterator[ToyServer]:
    """A server that lets in whom the file says; there is nobody yet."""
    Tenants().save(file)
    server = ToyServer(tiny_teacher, service_config.model_copy(update={"tenants": file}))
    server.start()
    yield server
    server.close()


def options_of(file: Path, token: str) -> ClientOptions:
    return ClientOptions(**HASTE, token_file=token_file(file, token))


def test_without_a_good_token_nothing_is_said_and_nothing_computed(
    guarded: ToyServer, file: Path, connect: Callable[..., TeacherTalk], monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger, _ = new_key("stranger")
    for options in (ClientOptions(**HASTE), options_of(file, stranger)):
        with pytest.raises(AccessError, match="authorization: got"):
            TeacherClient(guarded.address, options).describe()
        with pytest.raises(AccessError, match="authorization: got"):
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


def test_a_token_is_shown_under_tls_or_on_this_machine_only(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRECEPTOR_TOKEN", raising=False)
    assert metadata_of(ClientOptions(), "10.0.0.1:1") == ()
    monkeypatch.setenv("PRECEPTOR_TOKEN", "a.b")
    shown = (("authorization", "Bearer a.b"),)
    assert metadata_of(ClientOptions(), "127.0.0.1:1") == metadata_of(ClientOptions(), "[::1]:1") == shown
    assert metadata_of(ClientOptions(tls=TlsOptions()), "teacher.example:1") == shown
    for target in ("10.0.0.1:1", "teacher.example:1"):
        with pytest.raises(AccessError, match=r"not shown to .* in the clear"):
            metadata_of(ClientOptions(), target)
    with pytest.raises(AccessError, match=r"token_file: .*missing can't be read"):
        metadata_of(ClientOptions(token_file=file.with_name("missing")), "127.0.0.1:1")
    fields = {"teacher": {"options": {"token_file": "a.token"}}}
    resolved = TrainConfig.resolve(fields, file.parent)
    assert resolved["teacher"]["options"]["token_file"] == file.parent / "a.token"


def test_expiries_have_a_time_zone() -> None:
    key = new_key("a")[1]
    with pytest.raises(ValueError, match=r"timezone"):
        Tenant(keys=(key,), expires=datetime(2030, 1, 1))  # noqa: DTZ001
    assert TenantKey.model_validate(key.model_dump(mode="json")) == key
    assert Tenant(keys=(), expires=datetime.now(UTC) + timedelta(days=1)).keys == ()
