"""What a service on real Ray tells of itself: to those who ask, to Prometheus and in traces."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from opentelemetry import trace

from benchmarks.teachers import free_port
from services.teacher.environment import replica_ports
from student_client import TeacherTalk
from student_client.errors import InvalidMessageError
from tests.toy_dashboard import await_dashboard, learning
from tests.toy_metrics import await_metrics
from tests.toy_prometheus import prometheus
from tests.toy_service import status_told
from tests.toy_student import row_config
from tests.toy_traces import spans_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.teacher.config import ServiceConfig

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ServiceConfig:
    return row_config(
        tmp_path_factory.mktemp("rows"),
        port=free_port(),
        num_replicas=2,
        drain_s=0.5,
        num_cpus=0.5,
        signals={"traces": str(tmp_path_factory.mktemp("spans") / "spans.jsonl"), "logs": "json"},
    )


@pytest.fixture(scope="module")
def address(service: ServiceConfig) -> Iterator[str]:
    """A teacher on real Ray Serve."""
    from services.teacher.local import serving  # noqa: PLC0415 - Ray's environment is set first

    os.environ.update({"RAY_metrics_report_interval_ms": "1000"})
    with serving(service) as address:
        yield address


def test_prometheus_finds_what_the_directory_says_and_turns_have_spans(
    address: str, service: ServiceConfig
) -> None:
    talk = TeacherTalk.connect(
        address, student_dim=6, message_dim=4, message_len=1, reading="add", tenant="measured"
    )
    inputs = {"ids": torch.arange(2)}
    span = trace.SpanContext(1, 1, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(span)):
        for _ in range(3):
            talk(torch.randn(2, 6), inputs=inputs).decoded.sum().backward()
        with pytest.raises(InvalidMessageError):
            talk(torch.full((2, 6), torch.nan), inputs=inputs)
    await_metrics(address, "measured", num_turns=6)
    talk.close()
    path = service.signals.traces
    assert path is not None
    deadline_s = time.monotonic() + 30
    while len(spans := spans_in(Path(path))) < 25:  # written each second
        assert time.monotonic() < deadline_s, spans
        time.sleep(0.2)
    assert Counter(span.name for span in spans) == {"turn": 7, "queue": 6, "batch": 6, "compute": 6}
    assert {span.parent for span in spans if span.name == "turn"} == {f"0x{1:016x}"}
    (replica,) = {span.attributes["replica"] for span in spans if span.name == "turn"}
    assert int(replica.rpartition(":")[2]) in replica_ports(service)


def test_the_directory_and_replicas_say_how_they_are(address: str) -> None:
    talks = [
        TeacherTalk.connect(
            address, student_dim=6, message_dim=4, message_len=1, reading="replace", tenant=name
        )
        for name in "ab"
    ]
    for talk in talks:
        torch.autograd.backward(talk(torch.randn(2, 6)).decoded.sum())
    target = address.removeprefix("preceptor://")
    deadline_s = time.monotonic() + 30
    while True:  # replicas tell it each second, and it takes a sample every two
        status = status_told(target, history_s=60)
        turns = {each.name: each.num_turns for each in status.tenants if each.name in "ab"}
        sampled = {each.name for sample in status.history for each in sample.tenants}
        if turns == {"a": 2, "b": 2} and {"a", "b"} <= sampled:
            break
        assert time.monotonic() < deadline_s, status
        time.sleep(0.2)
    assert len(status.replicas) == 2
    for replica in status.replicas:
        assert replica.num_passes > 0
        (own,) = status_told(replica.address).replicas
        assert own.address == replica.address
    assert {each.tenant: each.replica for each in status.conversations}.keys() >= {"a", "b"}
    for talk in talks:
        talk.close()


def test_prometheus_has_data_for_all_that_the_dashboard_asks(address: str, tmp_path: Path) -> None:
    with prometheus(tmp_path) as server, learning(address, "sales", "support"):
        choices = await_dashboard(server)
    assert choices["teacher"] == ["rows"]
    assert {"sales", "support"} <= {*choices["tenant"]}
    assert len(choices["replica"]) == 2
