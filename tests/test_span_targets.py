"""Where spans go: a file that several append to, or a collector; and what a config may name."""

from __future__ import annotations

import json
import re
import time
from concurrent import futures
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from benchmarks.teachers import free_port
from preceptor.span_file import line_of
from preceptor.tracing import Tracing, check_target, check_tracing_installed, resolved_target
from services.teacher.config import ServiceConfig, SignalsConfig
from student_client.tracking import TrackingConfig
from tests.toy_traces import spans_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spans.jsonl"


def test_a_line_is_what_the_sdk_would_write(path: Path) -> None:
    tracing = Tracing(str(path), "teacher", {"preceptor.teacher": 'a "name"'})
    with tracing.tracer.start_as_current_span(
        "outer", attributes={"number": 1, "text": "\N{EURO SIGN}"}
    ) as outer:
        inner = tracing.tracer.start_span('in"ner', kind=trace.SpanKind.CLIENT)
        inner.set_status(trace.StatusCode.ERROR, "why\n")
        inner.end()
    tracing.close()
    written = [json.loads(line) for line in path.read_text().splitlines()]
    for span, line in zip([inner, outer], written, strict=True):
        expected = json.loads(span.to_json(indent=None))  # type: ignore[attr-defined]
        for name in ("start_time", "end_time"):  # the SDK goes through a float, which can't hold them
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line[name])
            told, rounded = (datetime.fromisoformat(each.pop(name)) for each in (line, expected))
            assert abs(told - rounded) <= timedelta(microseconds=2)
        assert line == expected
        assert line_of(span).startswith(f'{{"name": {json.dumps(span.name)}')  # type: ignore[arg-type, attr-defined]


def test_a_file_that_was_moved_away_begins_anew_and_one_that_cannot_be_written_stops_nobody(
    tmp_path: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("first", "second"):
        tracing = Tracing(str(path), "teacher")
        tracing.tracer.start_span(name).end()
        tracing.close()
        path.rename(tmp_path / name)
    assert [span.name for span in spans_in(tmp_path / "first", tmp_path / "second")] == ["first", "second"]
    tracing = Tracing(str(tmp_path), "teacher")
    tracing.tracer.start_span("nowhere").end()
    tracing.close()
    assert "gets no spans: Is a directory" in caplog.text


class _Collector(otlp_grpc.TraceServiceServicer):
    """A collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def Export(self, request: otlp.ExportTraceServiceRequest, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.names += [span.name for span in scope.spans]
        return otlp.ExportTraceServiceResponse()


def test_a_collector_gets_spans_of_both_makes() -> None:
    collector, server = _Collector(), grpc.server(futures.ThreadPoolExecutor(1))
    otlp_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tracing = Tracing(f"otlp://127.0.0.1:{port}", "teacher")
    with tracing.tracer.start_as_current_span("now") as span:
        tracing.add("before", span.get_span_context(), (1, 2), attributes={"number": 1}, error="REASON")
    tracing.close()
    server.stop(None).wait(30)
    assert sorted(collector.names) == ["before", "now"]


def test_a_collector_that_is_away_is_told_of_once_and_holds_nobody_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preceptor.tracing._BATCH_MS", 10.0)
    monkeypatch.setattr("preceptor.tracing._COLLECTOR_TIMEOUT_S", 0.1)
    tracing = Tracing(f"otlp://127.0.0.1:{free_port()}", "teacher")
    for _ in range(3):
        tracing.tracer.start_span("lost").end()
        assert tracing._processor.force_flush()
    tracing.close()
    (record,) = caplog.records
    assert "gets no spans: it does not answer" in record.message


def test_a_collector_that_is_away_at_the_end_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def send(spans: Sequence[ReadableSpan]) -> str:
        tried.append(len(spans))
        while not tracing._is_closing:
            time.sleep(0.01)
        return "it does not answer"

    monkeypatch.setattr("preceptor.tracing._collector", lambda _: send)
    monkeypatch.setattr("preceptor.tracing._MAX_BATCH", 10)
    tracing = Tracing("otlp://collector:4317", "teacher")
    for _ in range(100):
        tracing.tracer.start_span("lost").end()
    tracing.close()
    assert tried == [10]


@pytest.mark.parametrize("target", ["", "http://collector:4317", "otlp://collector", "otlp://a:b@host:4317"])
def test_what_is_neither_file_nor_collector_is_refused_without_being_repeated(target: str) -> None:
    for config in (SignalsConfig, TrackingConfig):
        with pytest.raises(ValueError, match=r"traces: expected a file, or otlp://HOST:PORT") as error:
            config(traces=target)
        assert "a:b" not in str(error.value)


def test_targets_hold_wherever_a_process_runs(tmp_path: Path) -> None:
    for target in (None, "otlp://collector:4317", "otlp://[::1]:4317"):
        assert check_target(target) == resolved_target(target, tmp_path) == target
    config = ServiceConfig(auth="none", signals=SignalsConfig(traces="spans.jsonl"))
    assert config.resolved(tmp_path).signals.traces == str(tmp_path / "spans.jsonl")
    assert TrackingConfig(traces="spans.jsonl").resolved(tmp_path).traces == str(tmp_path / "spans.jsonl")


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preceptor.tracing._EXPORTER", "opentelemetry.exporter.of.nobody")
    check_tracing_installed("spans.jsonl")
    with pytest.raises(ValueError, match=r"pip install 'preceptor\[tracing\]'"):
        check_tracing_installed("otlp://collector:4317")
