"""`preceptor describe` of a teacher that asks who is there."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.certificates import Authority
from tests.test_cli import run
from tests.test_tenant_access import token_file
from tests.test_tenant_file import file, invoke
from tests.test_tls import tls_of
from tests.toy_server import ToyServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher

__all__ = ["file"]


@pytest.fixture
def secure(
    tiny_teacher: Teacher, service_config: ServiceConfig, file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, ...]]:
    """What to say to a server under TLS that knows the team `support`; its token is in `support.token`."""
    monkeypatch.delenv("PRECEPTOR_TOKEN", raising=False)
    authority = Authority(file.parent, "authority")
    token_file(file, invoke("add", file, "support"))
    trust = {"auth": "tokens", "tenants": file, "tls": tls_of(authority)}
    server = ToyServer(tiny_teacher, service_config.model_copy(update=trust))
    server.start()
    yield "describe", f"preceptors://{server.address}", "--ca", str(authority.ca_file)
    server.close()


def test_a_token_comes_from_a_file_or_the_environment(
    secure: tuple[str, ...], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = file.with_name("support.token")
    nobody = run(*secure)
    assert nobody.exit_code == 1
    assert "name a token_file" in nobody.stderr
    assert run(*secure, "--token-file", str(token)).exit_code == 0
    monkeypatch.setenv("PRECEPTOR_TOKEN", token.read_text())
    assert run(*secure).exit_code == 0


def test_the_name_in_the_certificate_may_be_given(secure: tuple[str, ...], file: Path) -> None:
    known = (*secure, "--token-file", str(file.with_name("support.token")))
    assert run(*known, "--server-name", "teacher.example").exit_code == 0
    other = run(*known, "--server-name", "another.example")
    assert other.exit_code == 4
    assert "--server-name" in other.stderr


def test_half_a_pair_of_files_is_told_in_the_commands_own_words(file: Path) -> None:
    result = run("describe", "preceptors://127.0.0.1:1", "--certificate", str(file))
    assert result.exit_code == 2
    assert result.stderr.strip() == "error: --certificate, --key: got one of them, expected both or none"


def test_help_names_the_tokens_variable() -> None:
    assert "PRECEPTOR_TOKEN" in run("describe", "--help").output


def test_a_token_is_shown_in_the_clear_only_if_that_is_said(secure: tuple[str, ...], file: Path) -> None:
    words = (
        "describe",
        "preceptor://teacher.invalid:1",
        "--token-file",
        str(file.with_name("support.token")),
    )
    withheld = run(*words)
    assert withheld.exit_code == 1
    assert "not shown to teacher.invalid:1 in the clear" in withheld.stderr
    assert run(*words, "--insecure").exit_code == 4  # it is not there


def error_of(*words: str) -> str:
    """Returns all that a command says to people that reaches nobody, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    result = subprocess.run(
        [sys.executable, "-c", "from preceptor.cli import main; main()", *words],
        env={**environment, "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 4
    return result.stderr


def test_grpcs_own_words_do_not_stand_beside_the_error(secure: tuple[str, ...], tmp_path: Path) -> None:
    (line,) = error_of(*secure[:2], "--ca", str(Authority(tmp_path, "stranger").ca_file)).splitlines()
    assert line.startswith("error: no replica of")
