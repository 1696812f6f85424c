"""`preceptor health`, as a probe and by hand: against directories, replicas, TLS and nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from services.teacher.health_cli import health
from tests.test_serve import free_port
from tests.test_tls import authority, served, tls_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.certificates import Authority
    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher
    from tests.toy_server import ToyServer

__all__ = ["authority"]


def ask(*words: object) -> tuple[int, str]:
    """Runs the command; returns its exit code and what it prints."""
    app = typer.Typer()
    app.command()(health)
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output.strip()


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
    assert (code, told["serving"], told["ports"][str(port)]) == (0, True, "SERVING")
    assert set(told["ports"]) == {str(port - 1), str(port), str(port + 1)}


@pytest.mark.parametrize("how", [(), ("--tcp",)])
def test_where_nobody_listens_nobody_is_healthy(how: tuple[str, ...]) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert ask(address, *how) == (1, f"{address} UNAVAILABLE")


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


@pytest.mark.parametrize(
    "words",
    [
        ("127.0.0.1",),
        ("127.0.0.1:0",),
        ("127.0.0.1:41500", "--any-port", "41502-41501"),
        ("127.0.0.1:41500", "--any-port", "41501"),
        ("preceptors://127.0.0.1:41500", "--ca", "nowhere.pem"),
    ],
)
def test_a_probe_that_is_written_wrong_says_so(words: tuple[str, ...]) -> None:
    code, printed = ask(*words)
    assert code == 2
    assert "error:" in printed


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
