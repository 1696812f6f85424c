"""The console's server: who is told what, with which headers, and what a client can't do to it."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from google.protobuf import json_format

from preceptor.v1 import status_pb2 as pb
from services.teacher import console_server
from services.teacher.config import ServiceConfig
from services.teacher.console_files import console_files
from services.teacher.tenants import Tenant, Tenants, new_key
from tests.toy_status import ToySource, console_of, status_of_a_day

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

OPEN = ServiceConfig(auth="none")
MAX_PAGE_BYTES = 200_000


@pytest.fixture
def source() -> ToySource:
    return ToySource(status_of_a_day(num_samples=30))


@pytest.fixture
def port(source: ToySource) -> Iterator[int]:
    """Of a console that anybody here may look at."""
    with console_of(OPEN, source) as port:
        yield port


def ask(
    port: int, path: str, method: str = "GET", context: ssl.SSLContext | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Returns status, headers and body of one answer."""
    connection: http.client.HTTPConnection
    if context is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): headers[name] for name in headers})
        response = connection.getresponse()
        return (
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read(),
        )
    finally:
        connection.close()


def test_the_status_is_protobufs_json(port: int, source: ToySource) -> None:
    code, headers, body = ask(port, "/api/status?history_s=60")
    assert (code, headers["content-type"]) == (200, "application/json")
    assert json_format.Parse(body, pb.GetStatusResponse()) == source.status
    assert "num_conversations" in json.loads(body)["replicas"][0]
    assert source.asked == [("", 60)]
    _, headers, packed = ask(port, "/api/status?history_s=60", Accept_Encoding="br, gzip")
    assert headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed) == body


def test_every_answer_has_the_headers_that_keep_others_out(port: int) -> None:
    for path in ("/", "/console.js", "/console.css", "/api/status", "/nowhere"):
        _, headers, _ = ask(port, path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert not {"access-control-allow-origin", "server", "set-cookie"} & headers.keys()


def test_the_page_is_small_and_asks_nobody_else(port: int) -> None:
    code, headers, page = ask(port, "/")
    assert (code, headers["content-type"]) == (200, "text/html; charset=utf-8")
    names = re.findall(r'(?:src|href)="([^"]+)"', page.decode())
    assert len(names) == 3
    files = {name: ask(port, name.removeprefix(".")) for name in names}
    assert all(name.startswith("./") and files[name][0] == 200 for name in names)
    assert len(page) + sum(len(body) for _, _, body in files.values()) < MAX_PAGE_BYTES
    assert "<style" not in page.decode()
    assert "onload" not in page.decode()


@pytest.mark.parametrize(
    ("path", "method", "code"),
    [
        ("/nowhere", "GET", 404),
        ("/api", "GET", 404),
        ("/api/status/", "GET", 404),
        ("/../config.py", "GET", 404),
        ("/sources.sha256", "GET", 404),
        ("/index.html", "GET", 404),
        ("/%2e%2e/%2e%2e/config.py", "GET", 404),
        ("/api/status", "POST", 405),
        ("/", "DELETE", 405),
        ("/api/status?history_s=601", "GET", 400),
        ("/api/status?history_s=-1", "GET", 400),
        ("/api/status?history_s=٣", "GET", 400),
        ("/api/status?history_s=" + "9" * 4000, "GET", 400),
    ],
)
def test_whatever_else_is_asked_for_is_refused_in_json(port: int, path: str, method: str, code: int) -> None:
    path = path.encode().decode("latin-1")  # as http.client sends it
    with socket.create_connection(("127.0.0.1", port), 30) as line:
        line.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1")
        )
        answer = http.client.HTTPResponse(line)
        answer.begin()
        body = answer.read()
    if path.isascii():  # else it is no request at all
        assert answer.status == code
        assert set(json.loads(body)) == {"error"}
    else:
        assert answer.status == 400


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:41480", "[::1]:8", "LOCALHOST:1", "127.9.9.9"])
def test_without_tokens_this_machine_may_be_meant_by_its_names(port: int, host: str) -> None:
    assert ask(port, "/api/status", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:80", "10.0.0.1", "", "127.0.0.1@evil.example"]
)
def test_without_tokens_no_other_name_leads_here(port: int, source: ToySource, host: str) -> None:
    code, _, body = ask(port, "/api/status", Host=host)
    assert code == 421
    assert "host: got a name of another machine" in json.loads(body)["error"]
    assert ask(port, "/", Host=host)[0] == 421
    assert source.asked == []


def served_to(folder: Path, *names: str) -> tuple[ServiceConfig, dict[str, str]]:
    """Returns a config for tenants, and their tokens."""
    keys = {name: new_key(name) for name in names}
    path = folder / "tenants.yaml"
    Tenants(tenants={name: Tenant(keys=(key,)) for name, (_, key) in keys.items()}).save(path)
    return ServiceConfig(tenants=path), {name: token for name, (token, _) in keys.items()}


def test_nobody_is_told_anything_without_a_good_token(tmp_path: Path, source: ToySource) -> None:
    config, tokens = served_to(tmp_path, "search")
    with console_of(config, source) as port:
        assert ask(port, "/")[0] == 200
        code, headers, body = ask(port, "/api/status")
        assert (code, headers["www-authenticate"]) == (401, "Bearer")
        assert json.loads(body)["error"] == "authorization: got none, expected `Bearer TOKEN`"
        assert source.refusals == []  # that was the page, before anybody gave it a token
        for bad in ("search.wrong", "nobody.wrong", tokens["search"] + "x", "", "é"):
            code, _, body = ask(port, "/api/status", Authorization=f"Bearer {bad}")
            assert code == 401
            assert (bad or "-") not in body.decode().removeprefix('{"error": "authorization: ') or bad == ""
        assert ask(port, "/api/status", Authorization=tokens["search"])[0] == 401
        assert ask(port, f"/api/status?token={tokens['search']}")[0] == 401
        assert source.asked == []
        assert len(source.refusals) == 6
        assert tokens["search"].partition(".")[2] not in str(source.refusals)


def test_each_tenant_is_answered_as_itself(tmp_path: Path, source: ToySource) -> None:
    config, tokens = served_to(tmp_path, "search", "ads")
    with console_of(config, source) as port:
        for name in ("search", "ads", "search", "ads"):  # the same question, in the same half second
            code, _, body = ask(port, "/api/status", Authorization=f"Bearer {tokens[name]}")
            assert (code, json.loads(body)["tenant"]) == (200, name)
        Tenants(tenants={}).save(tmp_path / "tenants.yaml")
        assert ask(port, "/api/status", Authorization=f"Bearer {tokens['ads']}")[0] == 401


def test_many_who_ask_at_once_get_one_answer(port: int, source: ToySource) -> None:
    with ThreadPoolExecutor(32) as pool:
        codes = list(pool.map(lambda _: ask(port, "/api/status?history_s=600")[0], range(200)))
    assert codes == [200] * 200
    assert len(source.asked) < 100  # one in half a second


def test_what_fails_is_not_told_and_mended_by_itself(
    port: int, source: ToySource, caplog: pytest.LogCaptureFixture
) -> None:
    whole, source.status = source.status, None  # type: ignore[assignment]
    code, headers, body = ask(port, "/api/status")
    assert (code, json.loads(body)["error"]) == (500, "the service could not tell; its log has the reason")
    assert headers["cache-control"] == "no-store"
    assert "could not tell how the service is" in caplog.text
    source.status = whole
    deadline_s = time.monotonic() + 30
    while ask(port, "/api/status")[0] != 200:
        assert time.monotonic() < deadline_s


def test_connections_that_say_nothing_are_in_nobodys_way_and_end(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_server, "PATIENCE_S", 4.0)  # of who asks here, too
    lines = [
        socket.create_connection(("127.0.0.1", port), 30) for _ in range(2 * console_server.MAX_CONNECTIONS)
    ]
    try:
        for line in lines[::2]:
            line.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert ask(port, "/api/status")[0] == 200
        for line in lines:
            line.settimeout(30)
            assert is_over(line)
    finally:
        for line in lines:
            line.close()


def is_over(line: socket.socket) -> bool:
    try:
        return line.recv(1) == b""
    except ConnectionError:
        return True


def test_who_reads_nothing_holds_nobody_up_and_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_server, "PATIENCE_S", 4.0)  # of who asks here, too
    num_requests, num_bytes = 400, 0
    with socket.create_connection(("127.0.0.1", port), 30) as line:
        line.sendall(b"GET /console.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * num_requests)
        deadline_s = time.monotonic() + 7
        while time.monotonic() < deadline_s:
            assert ask(port, "/api/status")[0] == 200
        with contextlib.suppress(ConnectionError):
            while part := line.recv(1 << 20):
                num_bytes += len(part)
    assert 0 < num_bytes < num_requests * len(console_files()["/console.js"].content)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        b"A" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_request_ends_its_connection_only(port: int, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), 30) as line:
        line.sendall(request_bytes + b"\r\n\r\n")
        assert not line.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert ask(port, "/api/status")[0] == 200


def test_a_port_in_use_is_told(port: int, source: ToySource) -> None:
    with pytest.raises(OSError, match="in use"), console_of(OPEN, source, port):
        pass
