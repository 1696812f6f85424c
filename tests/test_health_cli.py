"""`preceptor health`, as a probe and by hand: against directories, replicas, TLS and nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.certificates import Authority
from services.teacher.health_cli import health
from tests.test_serve import free_port
from tests.test_tls import authority, served, tls_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher
    from tests.toy_server import ToyServer

__all__ = ["authority"]


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable by which the command keeps gRPC quiet."""
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)


def run(*words: object) -> Result:
    """Runs the command."""
    app = typer.Typer()
    app.command()(health)
    return CliRunner().invoke(app, [str(word) for word in words])


def ask(*words: object) -> tuple[int, str]:
    """Runs the command; returns its exit code and what it prints on stdout."""
    done = run(*words)
    return done.exit_code, done.stdout.strip()


def port_of(server: ToyServer) -> int:
    return int(server.address.rpartition(":")[2])


def test_a_replica_is_healthy_until_it_drains(start_server: Callable[..., ToyServer]) -> None:
    server = start_server()
    assert ask(server.address) == (0, f"{server.address} SERVING")
    server.drain()
    assert ask(server.address) == (1, f"{server.address} NOT_SERVING")


def test_one_port_of_many_that_serves_is_enough(server: ToyServer) -> None:
    port = port_of(server)
    code, printed = ask("127.0.0.1:1", "--any-port", f"{port - 1}-{port + 1}", "--json")
    told = json.loads(printed)
    assert (code, told["serving"], told["addresses"][server.address]) == (0, True, "SERVING")
    assert set(told["addresses"]) == {f"127.0.0.1:{number}" for number in (port - 1, port, port + 1)}


def test_of_several_addresses_one_that_serves_is_enough(server: ToyServer) -> None:
    nobody = f"localhost:{free_port()}"
    for scheme in ("", "preceptor://"):
        assert ask(f"{scheme}{nobody},{server.address}") == (
            0,
            f"{nobody} UNAVAILABLE\n{server.address} SERVING",
        )
    assert ask(f"{nobody},localhost:{free_port()}")[0] == 1


def test_the_ports_of_every_host_are_asked(server: ToyServer) -> None:
    port = port_of(server)
    hosts = f"127.0.0.2:1,127.0.0.1:1,127.0.0.1:{port}"
    assert ask(hosts, "--any-port", f"{port}-{port}") == (
        0,
        f"127.0.0.2:{port} UNAVAILABLE\n{server.address} SERVING",
    )


@pytest.mark.parametrize("how", [(), ("--tcp",)])
def test_where_nobody_listens_nobody_is_healthy(how: tuple[str, ...]) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = run(address, *how)
    assert (done.exit_code, done.stdout) == (1, f"{address} UNAVAILABLE\n")
    assert done.stderr.startswith(f"{address}: ")
    assert "Connection refused" in done.stderr


def test_a_certificate_vouches_for_itself_and_another_does_not(
    tiny_teacher: Teacher, service_config: ServiceConfig, authority: Authority
) -> None:
    tls = tls_of(authority)
    other, _ = authority.issue("other", "teacher.example")
    with served(tiny_teacher, service_config, tls) as server:
        address = f"preceptors://{server.address}"
        name = ("--server-name", "teacher.example")
        assert ask(address, "--ca", authority.ca_file, *name)[0] == 0
        assert ask(address, "--ca", tls.certificate, *name)[0] == 0
        assert ask(address, "--ca", other, *name) == (1, f"{server.address} UNAVAILABLE")
        assert ask(address, "--ca", tls.certificate, "--server-name", "shop.example")[0] == 1
        assert ask(server.address)[0] == 1


def test_where_certificates_are_asked_for_a_probe_can_see_that_something_listens(
    tiny_teacher: Teacher, service_config: ServiceConfig, authority: Authority
) -> None:
    tls = tls_of(authority, with_clients=True)
    with served(tiny_teacher, service_config, tls) as server:
        words = (
            f"preceptors://{server.address}",
            "--ca",
            tls.certificate,
            "--server-name",
            "teacher.example",
        )
        assert ask(*words)[0] == 1
        assert ask(*words, "--tcp") == (0, f"{server.address} SERVING")
        certificate, key = authority.issue("us", "us.example")
        assert ask(*words, "--certificate", certificate, "--key", key) == (0, f"{server.address} SERVING")


def test_the_authorities_of_the_system_are_trusted_as_students_do(
    tiny_teacher: Teacher,
    service_config: ServiceConfig,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served(tiny_teacher, service_config, tls_of(authority)) as server:
        address = f"preceptors://{server.address}"
        assert ask(address)[0] == 1
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
        assert ask(address) == (0, f"{server.address} SERVING")


def test_why_it_failed_is_said_once_and_not_by_grpc(
    tiny_teacher: Teacher,
    service_config: ServiceConfig,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An editable install may be older than the command.
    (installed := tmp_path / "commands-0.dist-info").mkdir()
    (installed / "METADATA").write_text("Name: commands\nVersion: 0\n")
    entry = f"health = {health.__module__}:health"
    (installed / "entry_points.txt").write_text(f"[preceptor.commands]\n{entry}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    probe = [sys.executable, "-m", "services.teacher.health_cli"]
    command = [sys.executable, "-c", "from preceptor.cli import main; main()", "health"]
    with served(tiny_teacher, service_config, tls_of(authority)) as server:
        words = [f"preceptors://{server.address}", "--ca", str(Authority(tmp_path, "stranger").ca_file)]
        for program in (probe, command):
            done = subprocess.run([*program, *words], capture_output=True, text=True, check=False, timeout=60)
            assert (done.returncode, done.stdout) == (1, f"{server.address} UNAVAILABLE\n")
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"{server.address}: ")
            assert "CERTIFICATE_VERIFY_FAILED" in line


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("127.0.0.1",), "address: got '127.0.0.1'"),
        (("127.0.0.1:0",), "address: got '127.0.0.1:0'"),
        (("127.0.0.1:41500,",), "address: got"),
        (("https://127.0.0.1:41500",), "expected preceptor://HOST:PORT"),
        (("127.0.0.1:41500", "--any-port", "41502-41501"), "--any-port"),
        (("127.0.0.1:41500", "--any-port", "41501"), "--any-port"),
        (("preceptors://127.0.0.1:41500", "--ca", "nowhere.pem"), "nowhere.pem: can't be read"),
        (("preceptors://127.0.0.1:41500", "--ca", __file__), "holds no certificates"),
        (("preceptors://127.0.0.1:41500", "--key", __file__), "--certificate, --key: got one"),
        (("127.0.0.1:41500", "--ca", __file__), "expected preceptors://"),
        (("127.0.0.1:41500", "--server-name", "a"), "expected preceptors://"),
    ],
)
def test_what_is_written_wrong_is_named(words: tuple[str, ...], why: str) -> None:
    done = run(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert why in " ".join(done.stderr.split())


def test_as_a_probe_it_loads_neither_torch_nor_ray(server: ToyServer) -> None:
    code = (
        "import runpy, sys; sys.argv = ['health', sys.argv[1]]\n"
        "try: runpy.run_module('services.teacher.health_cli', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, 'ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, server.address], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [f"{server.address} SERVING", "0 False False"]
