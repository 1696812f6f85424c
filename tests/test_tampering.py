"""What SECURITY.md promises of tokens, certificates and turns, against those who tamper with them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch

from benchmarks.certificates import Authority
from preceptor.terms import ObservationKind, Reading
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from services.teacher.config import CacheConfig
from student_client import AccessError, ClientOptions, TeacherClient, TeacherUnavailableError
from student_client.options import TlsOptions
from tests.test_tenant_access import guarded
from tests.test_tenant_file import file, invoke
from tests.test_tls import HASTE, authority, knock, served, tls_of
from tests.toy import STUDENT_DIM
from tests.toy_frames import (
    backward,
    codec_state,
    exchange,
    ids,
    message,
    observe,
    opening,
    set_codec,
)
from tests.toy_http2 import RawConnection
from tests.toy_server import RawStudent, ToyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher
    from student_client import TeacherTalk

__all__ = ["authority", "file", "guarded"]

NAME = "authorization"
SHARED_SECRETS: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_leaks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Holds every test of this file to it: whatever is sent, no line of a log has a secret or a traceback."""
    SHARED_SECRETS.clear()
    with caplog.at_level(logging.DEBUG):
        yield
    for record in caplog.get_records("call"):
        text = f"{record.getMessage()} {record.exc_text or record.exc_info or ''}"
        assert "Traceback" not in text
        assert not any(secret in text for secret in SHARED_SECRETS), record.name


def add(file: Path, name: str, *options: object) -> str:
    """Lets a team in; returns its token, which no log may have."""
    token = invoke("add", file, name, *options)
    SHARED_SECRETS.append(token.partition(".")[2])
    return token


def bearer(token: str) -> list[tuple[str, str]]:
    return [(NAME, f"Bearer {token}")]


def numbers_of(answer: pb.ConverseResponse) -> tuple[Any, ...]:
    """Returns what an answer says, without what it cost."""
    gradients = answer.gradients
    return answer.reply.reply, gradients.message, list(gradients.codec), answer.failed.message


TAMPERED: dict[str, Callable[[str, str], Sequence[tuple[str, str | bytes]]]] = {
    "none": lambda _mine, _other: [],
    "cut": lambda mine, _other: bearer(mine[:-1]),
    "without its name": lambda mine, _other: bearer(mine.partition(".")[2]),
    "without its secret": lambda mine, _other: bearer(mine.partition(".")[0] + "."),
    "of another name": lambda mine, other: bearer(f"{other.partition('.')[0]}.{mine.partition('.')[2]}"),
    "of nobody": lambda mine, _other: bearer(f"nobody.{mine.partition('.')[2]}"),
    "of a path": lambda mine, _other: bearer(f"../../etc/passwd.{mine.partition('.')[2]}"),
    "twice": lambda mine, _other: bearer(mine) * 2,
    "with another's": lambda mine, other: bearer(mine) + bearer(other),
    "in one header with another's": lambda mine, other: bearer(f"{mine}, Bearer {other}"),
    "in capitals": lambda mine, _other: bearer(mine.swapcase()),
    "of another scheme": lambda mine, _other: [(NAME, f"Basic {mine}")],
    "of a scheme in small letters": lambda mine, _other: [(NAME, f"bearer {mine}")],
    "without a scheme": lambda mine, _other: [(NAME, mine)],
    "with a space": lambda mine, _other: bearer(f" {mine}"),
    "binary": lambda mine, _other: [(f"{NAME}-bin", f"Bearer {mine}".encode())],
    "under another name": lambda mine, _other: [("proxy-authorization", f"Bearer {mine}")],
    "with 4 KB more": lambda mine, _other: bearer(mine + "x" * 4096),
    "with 1 MB more": lambda mine, _other: bearer(mine + "x" * (1 << 20)),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_token_that_was_tampered_with_opens_nothing(guarded: ToyServer, file: Path, how: str) -> None:
    mine, other = add(file, "mine"), add(file, "other")
    metadata: Any = TAMPERED[how](mine, other)
    with RawStudent(guarded.address, bearer(other)) as bystander:
        bystander.ask(opening(deterministic=True))
        expected = numbers_of(bystander.ask(set_codec(), exchange(1)))
        num_admitted = guarded.queue.num_admitted
        with RawStudent(guarded.address, metadata) as student:
            student.send(opening(), set_codec(), exchange(1))
            with pytest.raises(grpc.RpcError) as refused:
                student.rest()
        with grpc.insecure_channel(guarded.address) as channel:
            stub: Any = TeacherServiceStub(channel)  # type: ignore[no-untyped-call]
            for call, request in (
                (stub.DescribeTeacher, pb.DescribeTeacherRequest()),
                (stub.FindReplicas, pb.FindReplicasRequest()),
            ):
                with pytest.raises(grpc.RpcError) as also_refused:
                    call(request, metadata=metadata, timeout=30)
                assert also_refused.value.code() is refused.value.code()
        assert guarded.queue.num_admitted == num_admitted
        assert len(guarded.servicer._visits) == 1
        assert numbers_of(bystander.ask(exchange(2))) == expected
    # gRPC itself refuses headers of that size.
    too_large = how == "with 1 MB more"
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if too_large else grpc.StatusCode.UNAUTHENTICATED
    assert refused.value.code() is code
    assert not any(secret in str(refused.value) for secret in SHARED_SECRETS)


@pytest.mark.parametrize("changed", [b"\xff", b"\n", b"\0", b"\x80abc"])
def test_a_token_with_bytes_that_no_client_sends_opens_nothing(
    guarded: ToyServer, file: Path, changed: bytes
) -> None:
    token = f"Bearer {add(file, 'mine')}".encode()
    with RawConnection(guarded.address) as connection:
        connection.greet()
        connection.converse({NAME: token + changed})
        connection.read_until(b"grpc-status")
    assert guarded.servicer._visits == {}
    with RawStudent(guarded.address, [(NAME, token.decode())]) as student:
        assert student.ask(opening()).HasField("opened")


def test_another_teams_turns_and_codecs_are_not_there(guarded: ToyServer, file: Path) -> None:
    tokens = [add(file, name) for name in "abc"]
    alone, owner, thief = (RawStudent(guarded.address, bearer(token)) for token in tokens)
    with alone, owner, thief:
        for student in (alone, owner):
            student.ask(opening(deterministic=True, tenant="a"))
            student.ask(set_codec(7), exchange(41, codec_version=7))
        expected = numbers_of(alone.ask(backward(41)))
        thief.ask(opening(deterministic=True, tenant="b"))
        assert thief.ask(backward(41)).failed.reason == pb.REASON_TURN_UNKNOWN
        for frame in (exchange(1, codec_version=7), observe(2, codec_version=7)):
            failed = thief.ask(frame).failed
            assert failed.reason == pb.REASON_CODEC_UNKNOWN
            assert "held are none" in failed.message
        # The same numbers with other content are the thief's own.
        theirs = set_codec(7, codec_state(seed=3)), exchange(41, message(seed=9), codec_version=7)
        assert thief.ask(*theirs).HasField("reply")
        assert numbers_of(thief.ask(backward(41))) != expected
        assert numbers_of(owner.ask(backward(41))) == expected
        assert owner.ask(exchange(42, codec_version=7)).HasField("reply")


@pytest.mark.parametrize("shared", [False, True])
def test_what_one_team_had_read_tells_another_nothing_unless_it_is_shared(
    tiny_teacher: Teacher,
    service_config: ServiceConfig,
    file: Path,
    shared: bool,  # noqa: FBT001
) -> None:
    first, other = add(file, "first"), add(file, "other")
    update = {"auth": "tokens", "tenants": file, "cache": CacheConfig(shared=shared)}
    server = ToyServer(tiny_teacher, service_config.model_copy(update=update))
    server.start()
    looks: list[dict[str, Any]] = [
        {"kinds": (ObservationKind.LOWER_STATE,)},
        {"kinds": (ObservationKind.POOLED_STATE,)},
        {"kinds": (ObservationKind.LOGITS, ObservationKind.UPPER_STATE)},
        {"kinds": (ObservationKind.LOWER_STATE,), "ahead": True},
    ]
    counts = []
    for token in (first, other, other):
        with RawStudent(server.address, bearer(token)) as student:
            # It may call itself what it likes.
            student.ask(opening(reading=Reading.BESIDE, tenant="first"))
            student.send(set_codec())
            answers = [student.ask(observe(turn, **look)) for turn, look in enumerate(looks, 1)]
            reply = student.ask(exchange(9, inputs={"ids": ids()})).reply
        counts.append([answer.observation.receipt.num_cached_rows for answer in answers])
        assert reply.receipt.num_cached_rows == 2  # by now it is its own
    server.close()
    everything = [2, 2, 2, 2]
    assert counts[0] == [0, 0, 0, 2]
    assert counts[1] == (everything if shared else counts[0])
    assert counts[2] == everything


def test_rows_that_two_teams_send_at_once_are_cached_for_neither(guarded: ToyServer, file: Path) -> None:
    students = [RawStudent(guarded.address, bearer(add(file, name))) for name in "ab"]
    with students[0], students[1]:
        for student in students:
            student.ask(opening(reading=Reading.BESIDE))
        guarded.queue.gate.clear()
        for student in students:
            student.send(set_codec(), exchange(1, inputs={"ids": ids()}))
        guarded.queue.await_arrivals(2)
        guarded.queue.gate.set()
        receipts = [student.receive().reply.receipt for student in students]
    assert [receipt.num_cached_rows for receipt in receipts] == [0, 0]


@pytest.mark.parametrize("wrong", ["early", "of nobody's name"])
def test_a_teacher_whose_certificate_is_not_good_is_told_nothing(
    tiny_teacher: Teacher, service_config: ServiceConfig, authority: Authority, tmp_path: Path, wrong: str
) -> None:
    tls = tls_of(authority, early=wrong == "early")
    if wrong != "early":
        authority.issue("server", "another.example")  # in its place
    (tmp_path / "token").write_text("support." + "s" * 43)
    SHARED_SECRETS.append("s" * 43)
    with served(tiny_teacher, service_config, tls) as secure:
        options = ClientOptions(
            **HASTE, tls=TlsOptions(ca_file=authority.ca_file), token_file=tmp_path / "token"
        )
        with pytest.raises(TeacherUnavailableError, match=r"CERTIFICATE_VERIFY_FAILED|verif|name"):
            TeacherClient(f"preceptors://{secure.address}", options).describe()
        assert secure.servicer._visits == {}


@pytest.mark.parametrize("wrong", ["early", "of another authority of the same name", "signed by a student"])
def test_a_student_whose_certificate_is_not_good_is_not_let_in(
    tiny_teacher: Teacher, service_config: ServiceConfig, authority: Authority, tmp_path: Path, wrong: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    namesake = Authority(tmp_path / "elsewhere", "authority")
    issuer = namesake if wrong.startswith("of another") else authority
    certificate, key = issuer.issue("student", early=wrong == "early")
    if wrong.startswith("signed"):
        mine = Authority(tmp_path / "elsewhere", "student")  # as if a student's certificate could sign
        certificate, key = mine.issue("friend")
    with served(tiny_teacher, service_config, tls_of(authority, with_clients=True)) as secure:
        with pytest.raises(TeacherUnavailableError):
            knock(secure, ca_file=authority.ca_file, certificate_file=certificate, key_file=key)
        good, good_key = authority.issue("good")
        tls = {"ca_file": authority.ca_file, "certificate_file": good, "key_file": good_key}
        assert knock(secure, **tls) == service_config.name


def test_who_mixes_up_tls_and_the_clear_is_told(
    server: ToyServer,
    tiny_teacher: Teacher,
    service_config: ServiceConfig,
    authority: Authority,
    connect: Callable[..., TeacherTalk],
) -> None:
    with served(tiny_teacher, service_config, tls_of(authority)) as secure:
        options = ClientOptions(**HASTE)
        with pytest.raises(TeacherUnavailableError, match="does it speak TLS, at preceptors://"):
            TeacherClient(secure.address, options).describe()
        with pytest.raises(TeacherUnavailableError, match="does it speak TLS, at preceptors://"):
            connect(secure.address, options=options)(torch.randn(1, 2, STUDENT_DIM))
    with pytest.raises(TeacherUnavailableError, match="no TLS is spoken there, expected preceptor://"):
        knock(server, ca_file=authority.ca_file)


def test_a_client_certificate_is_no_token(
    tiny_teacher: Teacher, service_config: ServiceConfig, authority: Authority, file: Path
) -> None:
    token = add(file, "support")
    certificate, key = authority.issue("student")
    config = service_config.model_copy(update={"auth": "tokens", "tenants": file})
    with served(tiny_teacher, config, tls_of(authority, with_clients=True)) as secure:
        tls = {"ca_file": authority.ca_file, "certificate_file": certificate, "key_file": key}
        with pytest.raises(AccessError, match="authorization: got none"):
            knock(secure, **tls)
        file.with_name("token").write_text(token)
        options = ClientOptions(**HASTE, tls=TlsOptions(**tls), token_file=file.with_name("token"))
        assert TeacherClient(f"preceptors://{secure.address}", options).describe().teacher.name
        options = ClientOptions(
            **HASTE, tls=TlsOptions(ca_file=authority.ca_file), token_file=file.with_name("token")
        )
        with pytest.raises(TeacherUnavailableError):  # nor is a token a certificate
            TeacherClient(f"preceptors://{secure.address}", options).describe()
