"""A training step seen from both sides: every span of it in one trace, and none where nobody asked."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from benchmarks.bare_server import bare_server
from benchmarks.teachers import free_port
from services.teacher.config import SignalsConfig
from services.teacher.tenants import Tenant, Tenants, new_key
from student_client.run import StudentRun
from student_client.tracing import step, traces_to
from tests.test_train_run import ALL_LOSSES, make_config
from tests.toy import NUM_IDS, STUDENT_DIM
from tests.toy_student import row_config
from tests.toy_traces import by_id, children, spans_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from preceptor.v1 import teacher_pb2 as pb
    from student_client import TeacherTalk
    from tests.toy_server import ToyServer

ATTRIBUTES = {
    "step": {"step"},
    "exchange": {"turn", "replica", "conversation"},
    "observe": {"turn", "replica", "conversation"},
    "backward": {"turn", "replica", "conversation"},
    "turn": {"turn", "conversation", "replica", "kind"},
    "queue": set[str](),
    "batch": {"num_conversations", "num_tenants"},
    "compute": set[str](),
}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    """One step against a teacher in another process that asks for tokens: what both wrote, and the token."""
    folder = tmp_path_factory.mktemp("traces")
    table = folder / "table.csv"
    table.write_text("ids,label\n" + "".join(f"{number},{number % 2}\n" for number in range(NUM_IDS)))
    token, key = new_key("rows")
    tenants = folder / "tenants.yaml"
    Tenants(tenants={"rows": Tenant(keys=[key])}).save(tenants)
    (folder / "token").write_text(token)
    signals = SignalsConfig(traces=str(folder / "teacher.jsonl"))
    service = row_config(folder, port=free_port(), tenants=tenants).model_copy(update={"signals": signals})
    teacher: dict[str, Any] = {"options": {"token_file": folder / "token"}}
    with bare_server(service, folder) as address, traces_to(str(folder / "student.jsonl"), run="toy"):
        teacher["address"] = f"preceptor://{address}"
        run = StudentRun(make_config(table, "", teacher=teacher, losses=ALL_LOSSES, batch_size=NUM_IDS))
        next(run.train_epoch())
        run.close()
    files = [folder / "student.jsonl", folder / "teacher.jsonl"]
    return files, token


def test_all_spans_of_a_step_are_in_its_trace_across_both_processes(
    traced: tuple[list[Path], str],
) -> None:
    spans = spans_in(*traced[0])
    (step,) = [span for span in spans if span.name == "step"]
    assert {span.trace for span in spans} == {step.trace}
    assert step.parent is None
    assert step.attributes == {"step": 0}
    parents = by_id(spans)
    talked = [span for span in spans if span.name in {"exchange", "observe", "backward"}]
    assert {span.name for span in talked} == {"exchange", "observe", "backward"}
    served = [span for span in spans if span.name == "turn"]
    assert len(served) == len(talked)
    for span in served:
        asked = parents[span.parent]
        assert (asked.name, asked.service) == (span.attributes["kind"], "preceptor-student")
        assert (span.service, span.kind, asked.kind) == ("preceptor-teacher", "SERVER", "CLIENT")
        for name in ("turn", "conversation", "replica"):
            assert span.attributes[name] == asked.attributes[name]
        assert parents[asked.parent] is step
        assert asked.start_s <= span.start_s
        assert span.end_s <= asked.end_s


def test_queue_and_batch_are_within_their_turn(traced: tuple[list[Path], str]) -> None:
    spans = spans_in(*traced[0])
    for turn in (span for span in spans if span.name == "turn"):
        queue, batch = sorted(children(spans, turn), key=lambda span: span.start_s)
        assert (queue.name, batch.name) == ("queue", "batch")
        assert turn.start_s == queue.start_s
        assert queue.end_s == batch.start_s
        assert queue.seconds + batch.seconds <= turn.seconds + 1e-6
        assert batch.attributes == {"num_conversations": 1, "num_tenants": 1}
        (compute,) = children(spans, batch)
        assert compute.name == "compute"
        assert batch.start_s <= compute.start_s < compute.end_s <= batch.end_s


def test_spans_hold_names_and_numbers_and_no_token(traced: tuple[list[Path], str]) -> None:
    files, token = traced
    for span in spans_in(*files):
        assert set(span.attributes) == ATTRIBUTES[span.name]
        assert span.status == {"status_code": "UNSET"}
    for file in files:
        assert token.partition(".")[2] not in file.read_text()


class _Seen:
    """Stands where a replica's spans are made, and keeps the traces that frames name."""

    def __init__(self) -> None:
        self.named: list[str] = []

    def conversation(self, _: str) -> _Seen:
        return self

    def asked(self, frame: pb.ConverseRequest) -> None:
        self.named.append(frame.traceparent)

    def answered(self, answer: pb.ConverseResponse) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def seen(start_server: Callable[..., ToyServer]) -> tuple[ToyServer, list[str]]:
    server, watch = start_server(), _Seen()
    server.engine.signals.spans = watch  # type: ignore[assignment]
    return server, watch.named


def _talk(talk: TeacherTalk, server: ToyServer) -> None:
    heard = talk(torch.randn(2, 4, STUDENT_DIM, requires_grad=True))
    heard.decoded.sum().backward()


def test_without_traces_there_is_no_span_and_no_frame_names_one(
    seen: tuple[ToyServer, list[str]], connect: Callable[..., TeacherTalk]
) -> None:
    server, named = seen
    with traces_to(None):
        _talk(connect(server.address), server)
    assert named[:4] == ["", "", "", ""]  # open, codec, exchange, backward
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_span_of_the_programs_own_is_the_parent_unless_it_is_not_kept(
    seen: tuple[ToyServer, list[str]], connect: Callable[..., TeacherTalk]
) -> None:
    server, named = seen
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("program")
    talk = connect(server.address)
    with tracer.start_as_current_span("mine") as span:
        _talk(talk, server)
    context = span.get_span_context()
    assert {name for name in named if name} == {f"00-{context.trace_id:032x}-{context.span_id:016x}-01"}
    num_named = len(named)
    dropped = trace.SpanContext(context.trace_id, context.span_id, is_remote=False)
    with trace.use_span(trace.NonRecordingSpan(dropped)):
        _talk(talk, server)
    assert not any(named[num_named:])


def test_steps_beyond_those_that_a_second_keeps_are_nobodys_spans(
    seen: tuple[ToyServer, list[str]],
    connect: Callable[..., TeacherTalk],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, named = seen
    monkeypatch.setattr("student_client.tracing._MAX_TRACES_PER_S", 0)
    talk, path = connect(server.address), tmp_path / "spans.jsonl"
    with traces_to(str(path)):
        with step(0):
            _talk(talk, server)
        _talk(talk, server)  # a turn of no step is a trace as well
    assert len(named) >= 5
    assert not any(named)
    assert not path.exists()


def test_gradients_asked_for_on_another_thread_belong_to_their_turns_trace(
    server: ToyServer, connect: Callable[..., TeacherTalk], tmp_path: Path
) -> None:
    talk, path = connect(server.address), tmp_path / "spans.jsonl"
    with traces_to(str(path)):
        tracer = TracerProvider(shutdown_on_exit=False).get_tracer("program")
        with tracer.start_as_current_span("mine") as span:
            heard = talk(torch.randn(2, 4, STUDENT_DIM, requires_grad=True))
        thread = threading.Thread(target=heard.decoded.sum().backward)
        thread.start()
        thread.join()
    context = span.get_span_context()
    for line in spans_in(path):
        assert (line.trace, line.parent) == (f"0x{context.trace_id:032x}", f"0x{context.span_id:016x}")
    assert [line.name for line in spans_in(path)] == ["exchange", "backward"]


def test_a_turn_that_fails_says_so_in_its_span_without_the_words(
    server: ToyServer, connect: Callable[..., TeacherTalk], tmp_path: Path
) -> None:
    talk, path = connect(server.address, message_len=None), tmp_path / "spans.jsonl"
    too_long: dict[str, Any] = {"ids": torch.full((2, 4), 99999)}
    with traces_to(str(path)), pytest.raises(Exception, match="ids"):
        talk.observe(too_long, ["logits"])
    (span,) = spans_in(path)
    assert span.status == {"status_code": "ERROR", "description": "InvalidMessageError"}
