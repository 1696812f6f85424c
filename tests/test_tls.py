"""Talking under TLS: who is let in and who is not, with certificates that change while the service runs."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch

from benchmarks.certificates import Authority
from preceptor.authorities import authorities_of
from services.teacher.certificates import CertificateFiles
from services.teacher.config import ServiceConfig, TlsConfig
from services.teacher.local import address_of
from student_client import AccessError, ClientOptions, TeacherClient, TeacherUnavailableError
from student_client.config import TeacherConfig, TrainConfig
from student_client.options import TlsOptions
from tests.local_talk import gradients_of, loss_of
from tests.toy import STUDENT_DIM
from tests.toy_server import ToyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.teacher.families.base import Teacher
    from student_client import TeacherTalk

TENANTS = Path("tenants.yaml")
HASTE: dict[str, Any] = {"connect_timeout_s": 2, "answer_timeout_s": 2, "deadline_s": 2}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@contextlib.contextmanager
def served(teacher: Teacher, config: ServiceConfig, tls: TlsConfig) -> Iterator[ToyServer]:
    server = ToyServer(teacher, config.model_copy(update={"tls": tls}))
    server.start()
    try:
        yield server
    finally:
        server.close()


def tls_of(authority: Authority, *, with_clients: bool = False, **issue: Any) -> TlsConfig:
    certificate, key = authority.issue("server", "127.0.0.1", "teacher.example", **issue)
    return TlsConfig(certificate=certificate, key=key, client_ca=authority.ca_file if with_clients else None)


def knock(server: ToyServer, **tls: Any) -> str:
    """Asks a server what it is; returns its name."""
    options = ClientOptions(**HASTE, tls=TlsOptions(**tls))
    return TeacherClient(f"preceptors://{server.address}", options).describe().teacher.name


def test_a_talk_under_tls_is_the_talk_in_the_clear(
    server: ToyServer,
    tiny_teacher: Teacher,
    service_config: ServiceConfig,
    authority: Authority,
    connect: Callable[..., TeacherTalk],
) -> None:
    states, target = torch.randn(2, 3, 4, STUDENT_DIM)
    states.requires_grad_()
    gradients = []
    with served(tiny_teacher, service_config, tls_of(authority)) as secure:
        options = ClientOptions(tls=TlsOptions(ca_file=authority.ca_file))
        for talk in (
            connect(server.address),
            connect(f"preceptors://{secure.address}", options=options),
        ):
            gradients.append(gradients_of(loss_of(talk(states), target), talk, states=states))
            talk.close()
    expected, got = gradients
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("issue", "tls", "hint"),
    [
        ({}, {"ca_file": "stranger"}, "ca_file"),
        ({"expired": True}, {}, "expired"),
        ({}, {"server_name": "another.example"}, "server_name"),
        ({}, {"ca_file": None}, "ca_file"),  # the system does not know the authority
    ],
    ids=["of another authority", "expired", "of another name", "of nobody"],
)
def test_a_teacher_that_is_not_who_it_should_be_hears_nothing(
    tiny_teacher: Teacher,
    service_config: ServiceConfig,
    authority: Authority,
    tmp_path: Path,
    issue: dict[str, Any],
    tls: dict[str, Any],
    hint: str,
) -> None:
    stranger = Authority(tmp_path, "stranger")
    files = {"stranger": stranger.ca_file, None: None}
    ca_file = files[tls.pop("ca_file")] if "ca_file" in tls else authority.ca_file
    with served(tiny_teacher, service_config, tls_of(authority, **issue)) as secure:
        with pytest.raises(TeacherUnavailableError, match=f"; .*{hint}"):
            knock(secure, ca_file=ca_file, **tls)
        with pytest.raises(TeacherUnavailableError):
            TeacherClient(secure.address, ClientOptions(**HASTE)).describe()  # in the clear


def test_the_certificates_name_may_be_another_than_the_addresss(
    tiny_teacher: Teacher, service_config: ServiceConfig, authority: Authority
) -> None:
    with served(tiny_teacher, service_config, tls_of(authority)) as secure:
        for name in (None, "teacher.example"):
            assert knock(secure, ca_file=authority.ca_file, server_name=name) == service_config.name


def test_only_students_with_a_certificate_of_the_authority_are_let_in(
    tiny_teacher: Teacher, service_config: ServiceConfig, authority: Authority, tmp_path: Path
) -> None:
    def pair(issuer: Authority, name: str, **issue: Any) -> dict[str, Path]:
        certificate, key = issuer.issue(name, **issue)
        return {"ca_file": authority.ca_file, "certificate_file": certificate, "key_file": key}

    with served(tiny_teacher, service_config, tls_of(authority, with_clients=True)) as secure:
        assert knock(secure, **pair(authority, "student")) == service_config.name
        wrong = [
            {"ca_file": authority.ca_file},
            pair(Authority(tmp_path, "stranger"), "stranger-student"),
            pair(authority, "late-student", expired=True),
        ]
        for tls in wrong:
            with pytest.raises(TeacherUnavailableError):
                knock(secure, **tls)
        assert secure.engine.is_alive


def test_new_certificates_are_taken_without_a_restart_and_open_conversations_go_on(
    tiny_teacher: Teacher,
    service_config: ServiceConfig,
    authority: Authority,
    tmp_path: Path,
    connect: Callable[..., TeacherTalk],
) -> None:
    with served(tiny_teacher, service_config, tls_of(authority)) as secure:
        options = ClientOptions(**HASTE, tls=TlsOptions(ca_file=authority.ca_file))
        talk = connect(f"preceptors://{secure.address}", options=options)
        states = torch.randn(3, 4, STUDENT_DIM)
        before = talk(states).decoded
        successor = Authority(tmp_path, "successor")
        tls_of(successor)  # in the place of the old ones
        assert knock(secure, ca_file=successor.ca_file) == service_config.name
        with pytest.raises(TeacherUnavailableError):
            knock(secure, ca_file=authority.ca_file)
        assert torch.equal(talk(states).decoded, before)
        assert talk.conversation.num_reconnects == 0


def test_files_that_are_being_replaced_are_left_alone_until_they_fit(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tls = tls_of(authority)
    files = CertificateFiles(tls)
    assert files.changed() is None
    certificate = tls.certificate.read_bytes()
    authority.issue("server")  # a new pair
    new_certificate = tls.certificate.read_bytes()
    tls.certificate.write_bytes(certificate)  # of which half has arrived
    with caplog.at_level(logging.WARNING):
        assert [files.changed() for _ in range(3)] == 3 * [None]
    assert caplog.text.count("the certificates stay what they were") == 1
    assert "PRIVATE KEY" not in caplog.text
    tls.certificate.write_bytes(new_certificate)
    assert isinstance(files.changed(), grpc.ServerCertificateConfiguration)
    assert files.changed() is None
    tls.key.unlink()
    assert files.changed() is None


def test_files_that_are_no_certificates_are_told(authority: Authority, tmp_path: Path) -> None:
    tls = tls_of(authority)
    tls.certificate.write_text("nothing of the kind")
    with pytest.raises(ValueError, match=r"tls: got .*server\.crt and .*server\.key, expected a certificate"):
        CertificateFiles(tls)
    tls.certificate.unlink()
    with pytest.raises(ValueError, match=r"tls: .*server\.crt can't be read"):
        CertificateFiles(tls)
    options = ClientOptions(**HASTE, tls=TlsOptions(ca_file=tmp_path / "missing.pem"))
    with pytest.raises(AccessError, match=r"options\.tls: .*missing\.pem can't be read"):
        TeacherClient("preceptors://127.0.0.1:1", options).describe()


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "teacher.example"])  # noqa: S104
def test_beyond_loopback_the_clear_is_a_choice(host: str, authority: Authority) -> None:
    with pytest.raises(ValueError, match="which other machines reach, without `tls`"):
        ServiceConfig(host=host, tenants=TENANTS)
    assert address_of(ServiceConfig(host="teacher.example", tenants=TENANTS, insecure=True)).startswith(
        "preceptor://"
    )
    tls = tls_of(authority)
    assert address_of(ServiceConfig(host="teacher.example", tenants=TENANTS, tls=tls)).startswith(
        "preceptors://"
    )
    for local in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert ServiceConfig(host=local, tenants=TENANTS).tls is None


def test_configs_say_what_they_mean(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got preceptor:// with options\.tls, expected preceptors://"):
        TeacherConfig(address="preceptor://a:1", options=ClientOptions(tls=TlsOptions()))
    with pytest.raises(ValueError, match="certificate_file, key_file: got one, expected both"):
        TlsOptions(key_file=tmp_path)
    fields = {"teacher": {"options": {"tls": {"ca_file": "ca.pem", "server_name": "a"}}}}
    resolved = TrainConfig.resolve(fields, tmp_path)
    tls = resolved["teacher"]["options"]["tls"]
    assert tls == {"ca_file": tmp_path / "ca.pem", "server_name": "a"}
    content = {"auth": "none", "tls": {"certificate": "a.crt", "key": "a.key"}}
    config = ServiceConfig.model_validate(content).resolved(tmp_path)
    assert config.tls == TlsConfig(certificate=tmp_path / "a.crt", key=tmp_path / "a.key")


def test_an_empty_file_of_authorities_is_no_authority(tmp_path: Path) -> None:
    for content in ("", "nothing of the kind"):
        (tmp_path / "ca.pem").write_text(content)
        options = ClientOptions(**HASTE, tls=TlsOptions(ca_file=tmp_path / "ca.pem"))
        with pytest.raises(AccessError, match=r"ca\.pem holds no certificates"):
            TeacherClient("preceptors://127.0.0.1:1", options).describe()


def test_a_file_of_authorities_may_name_them_in_any_language(authority: Authority) -> None:
    bundle = "# F\N{LATIN SMALL LETTER O WITH DOUBLE ACUTE}tan\N{LATIN SMALL LETTER U WITH ACUTE}".encode()
    authority.ca_file.write_bytes(bundle + b"\n" + authority.ca_file.read_bytes())
    assert authorities_of(authority.ca_file).startswith(bundle)


def test_several_hosts_need_a_name_in_common() -> None:
    several = "preceptors://one.example:1,two.example:2"
    with pytest.raises(ValueError, match=r"server_name: got none for one\.example, two\.example"):
        TeacherClient(several)
    TeacherClient(several, ClientOptions(tls=TlsOptions(server_name="teacher.example")))
    TeacherClient("preceptors://one.example:1,one.example:2")
