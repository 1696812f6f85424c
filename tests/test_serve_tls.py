"""TLS and tokens on real Ray Serve: directory and replicas speak nothing else, and to nobody else."""

from __future__ import annotations

import json
import os
import signal
import ssl
import time
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest
import torch

from benchmarks.certificates import Authority
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from services.teacher.tenants import Tenant, Tenants, new_key
from student_client import AccessError, ClientOptions, TeacherClient, TeacherTalk, TeacherUnavailableError
from student_client.credentials import credentials_of
from student_client.options import TlsOptions
from tests.test_console import ask
from tests.test_serve import free_port
from tests.test_tls import tls_of
from tests.toy_frames import opening
from tests.toy_service import listeners
from tests.toy_student import row_config

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.serve


def refused_with(target: str, options: ClientOptions) -> grpc.StatusCode:
    """Opens a conversation at a replica without a token; returns the status that this ends with."""
    assert options.tls is not None
    with grpc.secure_channel(target, credentials_of(options.tls)) as channel:
        call = TeacherServiceStub(channel).Converse(iter([opening()]), timeout=10)  # type: ignore[no-untyped-call]
        code: grpc.StatusCode = call.code()
    return code


def _seen_by(token: str, port: int, trusting: ssl.SSLContext) -> dict[str, Any]:
    """Returns what the console tells, once it knows that the one who asks has talked."""
    deadline_s = time.monotonic() + 30
    while True:
        code, _, body = ask(port, "/api/status", context=trusting, Authorization=f"Bearer {token}")
        assert code == 200
        status: dict[str, Any] = json.loads(body)
        if int(status.get("tenants", [{}])[0].get("num_turns", 0)) == 2:  # there and back
            return status
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def test_only_tenants_talk_to_a_service_and_none_in_the_clear(tmp_path: Path) -> None:
    from services.teacher.local import serving  # noqa: PLC0415 - Ray's environment is set first

    authority = Authority(tmp_path, "authority")
    tls = tls_of(authority, with_clients=True)
    token, key_of_token = new_key("support")
    tenants, token_file = tmp_path / "tenants.yaml", tmp_path / "support.token"
    Tenants(tenants={"support": Tenant(keys=(key_of_token,))}).save(tenants)
    token_file.write_text(token)
    audit_log = tmp_path / "audit.jsonl"
    console = {"port": free_port()}
    trust: dict[str, Any] = {"tls": tls, "tenants": tenants, "audit_log": audit_log, "console": console}
    config = row_config(tmp_path, port=free_port(), num_replicas=2, drain_s=0.5, num_cpus=0.5, **trust)
    certificate, key = authority.issue("student")
    options = ClientOptions(
        connect_timeout_s=5,
        answer_timeout_s=10,
        token_file=token_file,
        tls=TlsOptions(ca_file=authority.ca_file, certificate_file=certificate, key_file=key),
    )
    with serving(config) as address:
        assert address.startswith("preceptors://127.0.0.1:")
        assert TeacherClient(address, options).describe().teacher.name == config.name
        nameless = options.model_copy(update={"token_file": None})
        with pytest.raises(AccessError, match="authorization: got none"):
            TeacherClient(address, nameless).describe()
        for port in range(config.port + 1, config.port + 3):  # each replica by itself
            with pytest.raises(AccessError, match="authorization: got none"):
                TeacherClient(f"preceptors://127.0.0.1:{port}", nameless).describe()
            assert refused_with(f"127.0.0.1:{port}", options) is grpc.StatusCode.UNAUTHENTICATED
        quick = ClientOptions(connect_timeout_s=2)
        for port in range(config.port, config.port + 3):
            with pytest.raises(TeacherUnavailableError):
                TeacherClient(f"127.0.0.1:{port}", quick).describe()
        talk = TeacherTalk.connect(address, student_dim=6, message_dim=4, reading="replace", options=options)
        states = torch.randn(3, 1, 6, requires_grad=True)
        before = talk(states).decoded
        torch.autograd.backward(before.square().sum())
        trusting = ssl.create_default_context(cafile=str(authority.ca_file))
        trusting.load_cert_chain(certificate, key)
        assert ask(console["port"], "/api/status", context=trusting)[0] == 401
        status = _seen_by(token, console["port"], trusting)
        assert (status["tenant"], len(status["replicas"])) == ("support", 2)
        assert [each["tenant"] for each in status["conversations"]] == ["support"]
        ports = range(config.port + 1, config.port + 3)
        (port,) = {
            each.raddr.port
            for each in psutil.Process().net_connections("tcp")
            if each.status == psutil.CONN_ESTABLISHED and each.raddr.port in ports
        }
        (listener,) = listeners(port)
        os.kill(listener.pid, signal.SIGKILL)
        assert torch.equal(talk(states).decoded, before)  # from the other one, found under TLS too
        talk.close()
        Tenants(tenants={}).save(tenants)
        with pytest.raises(AccessError, match="not known, or not any more"):
            TeacherClient(address, options).describe()
    lines = [json.loads(line) for line in audit_log.read_text().splitlines()]
    assert {line["event"] for line in lines} == {"opened", "closed", "refused"}
    assert [line["tenant"] for line in lines if line["event"] == "opened"] == ["support", "support"]
    assert token.partition(".")[2] not in audit_log.read_text()
