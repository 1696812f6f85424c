"""The console under TLS: the service's certificates, and those of who looks."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.certificates import Authority
from services.teacher import console_server
from services.teacher.config import ServiceConfig, TlsConfig
from tests.test_console import ask, is_over
from tests.toy_status import ToySource, console_of, status_of_a_day

if TYPE_CHECKING:
    from pathlib import Path

OPEN = ServiceConfig(auth="none")


@pytest.fixture
def source() -> ToySource:
    return ToySource(status_of_a_day(num_samples=1))


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.ca_file))


def issued(authority: Authority, **more: Any) -> TlsConfig:
    certificate, key = authority.issue("server", "127.0.0.1")
    return TlsConfig(certificate=certificate, key=key, **more)


def test_tls_is_the_services_and_its_certificate_is_renewed(tmp_path: Path, source: ToySource) -> None:
    authority, other = Authority(tmp_path, "one"), Authority(tmp_path, "other")
    config = OPEN.model_copy(update={"tls": issued(authority)})
    with console_of(config, source) as port:
        assert ask(port, "/api/status", context=trusting(authority))[0] == 200
        with pytest.raises(ConnectionError):
            ask(port, "/api/status")
        issued(other)
        assert ask(port, "/api/status", context=trusting(other))[0] == 200
        (tmp_path / "server.key").write_text("half of a key")
        assert ask(port, "/api/status", context=trusting(other))[0] == 200


def test_broken_certificates_are_told_once_a_change(
    tmp_path: Path, source: ToySource, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path, "one")
    tls = issued(authority)
    key = tls.key.read_text()

    def told_at_three_visits() -> int:
        caplog.clear()
        for _ in range(3):
            assert ask(port, "/api/status", context=trusting(authority))[0] == 200
        return sum("the console's certificates stay what they were" in text for text in caplog.messages)

    with console_of(OPEN.model_copy(update={"tls": tls}), source) as port:
        for broken in ("half", "another half"):
            tls.key.write_text(broken)
            assert told_at_three_visits() == 1
        tls.key.unlink()
        assert told_at_three_visits() == 1
        tls.key.write_text(key)
        assert told_at_three_visits() == 0
        tls.key.unlink()
        assert told_at_three_visits() == 1


def test_connections_that_never_speak_tls_end(
    tmp_path: Path, source: ToySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_server, "PATIENCE_S", 4.0)
    authority = Authority(tmp_path, "one")
    with console_of(OPEN.model_copy(update={"tls": issued(authority)}), source) as port:
        with socket.create_connection(("127.0.0.1", port), 30) as silent:
            assert ask(port, "/api/status", context=trusting(authority))[0] == 200
            assert is_over(silent)
        assert ask(port, "/api/status", context=trusting(authority))[0] == 200


def test_where_students_show_certificates_so_does_who_looks(tmp_path: Path, source: ToySource) -> None:
    authority = Authority(tmp_path, "one")
    config = OPEN.model_copy(update={"tls": issued(authority, client_ca=authority.ca_file)})
    with console_of(config, source) as port:
        context = trusting(authority)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(port, "/api/status", context=context)
        context.load_cert_chain(*authority.issue("operator"))
        assert ask(port, "/api/status", context=context)[0] == 200
