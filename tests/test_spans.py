"""A teacher's spans: whose turns get them, what they say, and where they go."""

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
from opentelemetry.sdk.trace import TracerProvider

from benchmarks.teachers import free_port
from preceptor.sampling import at_most
from preceptor.tracing import Tracing, check_target, check_tracing_installed, line_of, resolved_target
from services.teacher.config import ServiceConfig, SignalsConfig
from services.teacher.spans import ReplicaSpans, parent_of
from student_client.tracking import TrackingConfig
from tests.toy_frames import Desk, backward, exchange, observe, opening, set_codec
from tests.toy_traces import by_id, children, spans_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from preceptor.v1 import teacher_pb2 as pb
    from services.teacher.engine import Engine

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
REFUSED = [
    "",
    "00",
    f"00-{TRACE}-{SPAN}-00",  # its student keeps no span of it
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE.upper()}-{SPAN}-01",
    f"01-{TRACE}-{SPAN}-01",
    f"00-{TRACE}-{SPAN}-01-more",
    f"00-{TRACE}-{SPAN}-01\n",
    f"00-{TRACE[:-1]}\N{FULLWIDTH DIGIT SIX}-{SPAN}-01",
    "x" * 100_000,
]


def _named(frame: pb.ConverseRequest, traceparent: str = PARENT) -> pb.ConverseRequest:
    frame.traceparent = traceparent
    return frame


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spans.jsonl"


@pytest.fixture
def desk(engine: Engine, path: Path) -> Iterator[Callable[..., Desk]]:
    """Opens a conversation that gets spans; the keywords are of `ReplicaSpans`."""
    desks: list[Desk] = []

    def open_desk(**fields: Any) -> Desk:
        engine.signals.spans = ReplicaSpans(Tracing(str(path), "teacher"), **fields)
        desks.append(Desk(engine))
        desks[-1].say(opening(), set_codec())
        return desks[-1]

    yield open_desk
    for each in desks:
        each.__exit__()


def _close(engine: Engine) -> None:
    assert engine.signals.spans is not None
    engine.signals.spans.close()


def test_each_turn_of_a_trace_is_a_span_with_its_queue_and_batch(
    desk: Callable[..., Desk], engine: Engine, path: Path
) -> None:
    talk = desk()
    frames = [exchange(1), backward(1), observe(2), exchange(3)]
    for frame in frames[:3]:
        talk.say(_named(frame))
    talk.say(frames[3])  # of no trace
    _close(engine)
    spans = spans_in(path)
    turns = [span for span in spans if span.name == "turn"]
    assert [(turn.attributes["kind"], turn.attributes["turn"]) for turn in turns] == [
        ("exchange", 1),
        ("backward", 1),
        ("observe", 2),
    ]
    assert {(turn.trace, turn.parent) for turn in turns} == {(f"0x{TRACE}", f"0x{SPAN}")}
    for turn in turns:
        assert [child.name for child in children(spans, turn)] == ["queue", "batch"]
    assert len(by_id(spans)) == 4 * len(turns)


@pytest.mark.parametrize("traceparent", REFUSED)
def test_a_frame_that_names_no_kept_span_is_served_all_the_same(
    traceparent: str, desk: Callable[..., Desk], engine: Engine, path: Path
) -> None:
    assert parent_of(traceparent) is None
    assert desk().ask(_named(exchange(1), traceparent)).HasField("reply")
    _close(engine)
    assert not path.exists()


def test_a_repeated_turn_of_another_trace_is_the_same_turn(desk: Callable[..., Desk]) -> None:
    talk = desk()
    (first,) = talk.say(_named(exchange(1)))
    (again,) = talk.say(_named(exchange(1), PARENT.replace(SPAN, SPAN[::-1])))
    assert first.reply.reply == again.reply.reply


def test_a_refused_turns_span_has_the_reason_and_no_word_of_it(
    desk: Callable[..., Desk], engine: Engine, path: Path
) -> None:
    assert desk().ask(_named(exchange(1, codec_version=9))).HasField("failed")
    _close(engine)
    (span,) = spans_in(path)
    assert span.status == {"status_code": "ERROR", "description": "REASON_CODEC_UNKNOWN"}


def test_a_second_has_so_many_turns_and_traces_that_were_followed_go_on(
    desk: Callable[..., Desk], engine: Engine, path: Path
) -> None:
    now_s = [0.0]
    talk = desk(max_turns_per_s=4, clock=lambda: now_s[0])
    traces = [PARENT.replace(TRACE, f"{number:032x}") for number in range(1, 5)]
    order = [0, 1, 2, 0, 3, 0, 0]  # the third is one too many, the first is known, and then it is enough
    for turn, number in enumerate(order, 1):
        talk.say(_named(exchange(turn), traces[number]))
    now_s[0] = 1.0
    for turn, number in enumerate([3, 2, 1, 0], len(order) + 1):
        talk.say(_named(exchange(turn), traces[number]))
    _close(engine)
    turns = [int(span.trace, 16) - 1 for span in spans_in(path) if span.name == "turn"]
    assert turns == [0, 1, 0, 0, 3, 2, 1, 0]


def test_the_first_traces_of_a_second_are_kept_and_they_whole() -> None:
    now_s, kept = [0.0], []
    tracer = TracerProvider(sampler=at_most(2, clock=lambda: now_s[0]), shutdown_on_exit=False).get_tracer(
        "test"
    )
    for second in (0, 0, 0, 0, 1, 1, 1, 5):
        now_s[0] = second + 0.5
        with tracer.start_as_current_span("outer") as outer:
            now_s[0] += 0.4
            inner = [tracer.start_span("inner") for _ in range(4)]
            assert {span.is_recording() for span in inner} == {outer.is_recording()}
            kept.append(outer.is_recording())
    assert kept == [True, True, False, False, True, True, False, True]


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
