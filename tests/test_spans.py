"""A teacher's spans: whose turns get them, and what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider

from preceptor.sampling import at_most
from preceptor.tracing import Tracing
from preceptor.v1 import teacher_pb2 as pb
from services.teacher.spans import ReplicaSpans, parent_of
from tests.toy_frames import Desk, backward, exchange, message, observe, opening, set_codec
from tests.toy_traces import by_id, children, spans_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services.teacher.engine import Engine

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
OTHER_SPAN = SPAN[::-1]
OTHER = f"00-{TRACE}-{OTHER_SPAN}-01"
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


def _turns(path: Path) -> list[tuple[int, str, str]]:
    """Returns number, parent and status of each turn's span."""
    return [
        (span.attributes["turn"], str(span.parent).removeprefix("0x"), span.status["status_code"])
        for span in spans_in(path)
        if span.name == "turn"
    ]


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


def test_a_repeated_turn_of_another_trace_is_the_same_turn_in_both(
    desk: Callable[..., Desk], engine: Engine, path: Path
) -> None:
    first, again = desk().say(_named(exchange(1)), _named(exchange(1), OTHER))  # neither is answered yet
    assert first.reply.reply == again.reply.reply
    _close(engine)
    assert [(parent, code) for _, parent, code in _turns(path)] == [(SPAN, "UNSET"), (OTHER_SPAN, "UNSET")]


def test_what_fails_is_the_frame_that_the_reason_is_of(
    desk: Callable[..., Desk], engine: Engine, path: Path
) -> None:
    talk, changed = desk(), torch.ones_like(message())
    talk.say(_named(exchange(1)), _named(exchange(1, changed), OTHER))
    talk.say(_named(exchange(2)), _named(backward(2), OTHER))  # there is nothing yet to go back through
    talk.say(exchange(3))
    talk.say(_named(backward(3)), _named(exchange(3, changed), OTHER))
    talk.say(_named(exchange(4)), backward(4))  # a trace that knows only one of the two
    _close(engine)
    assert set(_turns(path)) == {
        (1, SPAN, "UNSET"),
        (1, OTHER_SPAN, "ERROR"),
        (2, SPAN, "UNSET"),
        (2, OTHER_SPAN, "ERROR"),
        (3, SPAN, "UNSET"),
        (3, OTHER_SPAN, "ERROR"),
        (4, SPAN, "UNSET"),
    }


def test_a_failure_of_either_of_two_frames_ends_the_older(
    desk: Callable[..., Desk], engine: Engine, path: Path
) -> None:
    talk = desk()
    talk.say(exchange(1))
    broken = pb.Failed(turn=1, reason=pb.REASON_INTERNAL)
    spans = talk.conversation.signals.spans
    assert spans is not None
    for frame in (_named(backward(1)), _named(exchange(1), OTHER)):
        spans.asked(frame)
    spans.answered(pb.ConverseResponse(failed=broken))
    _close(engine)
    assert _turns(path) == [(1, SPAN, "ERROR")]


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
