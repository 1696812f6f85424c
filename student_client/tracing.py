"""Spans of a student: its steps and its turns with the teacher, in one trace with what the teacher does.

They go where `traces_to` says. Where a program has an OpenTelemetry provider of its own they go there, as
parts of the program's own spans. Else there are none, and frames name no trace.

Context crosses from the caller's thread to the conversations' as asyncio has it cross; autograd's own threads
have none, so gradients fall back on that of their turn.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry import context as contexts
from opentelemetry import trace

from preceptor.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from preceptor.v1 import teacher_pb2 as pb

__all__ = ["here", "stamp", "step", "traces_to", "turn"]

ResultT = TypeVar("ResultT")

_MAX_TRACES_PER_S = 25  # a step is one; a replica has spans for as many, see services/teacher/spans.py

_own: Tracing | None = None
_asking: ContextVar[trace.Span | None] = ContextVar("asking", default=None)  # the span of the present turn


@contextlib.contextmanager
def traces_to(target: str | None, **facts: str) -> Iterator[None]:
    """Sends this process's spans somewhere while open; what is there at the end is sent before it returns.

    The first 25 steps of a second, or turns outside of steps, have spans; of others nothing is kept.

    Args:
        target: a file that gets a line of JSON a span, `otlp://HOST:PORT` of a collector, or None.
        facts: attributes of all spans.

    Raises:
        ValueError: what it needs is not installed.
    """
    global _own  # the spans of a process belong together, whoever makes them
    if target is None:
        yield
        return
    before, _own = _own, Tracing(target, "preceptor-student", facts, _MAX_TRACES_PER_S)
    try:
        yield
    finally:
        ended, _own = _own, before
        ended.close()


def _tracer() -> trace.Tracer | None:
    if _own is not None:
        return _own.tracer
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider) else provider.get_tracer("preceptor")


@contextlib.contextmanager
def step(number: int) -> Iterator[None]:
    """Makes what is done while open one span; spans within are its parts.

    Args:
        number: of the step, from 0.
    """
    tracer = _tracer()
    if tracer is None:
        yield
        return
    span = tracer.start_span("preceptor.step", attributes={"preceptor.step": number})
    with _within(span):
        yield


def here() -> contexts.Context | None:
    """Returns the context that turns are sent in, for their gradients; None if there is no trace."""
    return contexts.get_current() if trace.get_current_span().get_span_context().is_valid else None


def turn(
    kind: str,
    number: int,
    work: Callable[[], Coroutine[Any, Any, ResultT]],
    context: contexts.Context | None = None,
) -> Coroutine[Any, Any, ResultT]:
    """Returns the work on a turn, as a span that begins now, if there are any.

    Args:
        kind: "exchange", "observe" or "backward".
        number: of the turn.
        work: sends it and waits for its answer.
        context: whose part it is, where the present thread has none.
    """
    tracer = _tracer()
    if tracer is None:
        return work()
    present = trace.get_current_span().get_span_context()
    if present.is_valid and not present.trace_flags.sampled:
        return work()
    parent = None if present.is_valid else context
    span = tracer.start_span(
        f"preceptor.{kind}", parent, kind=trace.SpanKind.CLIENT, attributes={"preceptor.turn": number}
    )

    async def traced() -> ResultT:
        token = _asking.set(span)
        try:
            with _within(span):
                return await work()
        finally:
            _asking.reset(token)

    return traced()


@contextlib.contextmanager
def _within(span: trace.Span) -> Iterator[None]:
    """Lets what is done while open be the span's; of an error it holds the kind, never the words."""
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
    except BaseException as error:
        span.set_status(trace.StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        span.end()


def stamp(frame: pb.ConverseRequest, replica: str, conversation: str) -> None:
    """Has a turn's frame name the present span, if it is kept, and the turn's span who answers it.

    Args:
        frame: about to be sent.
        replica: HOST:PORT of where to.
        conversation: as the replica calls it.
    """
    context = trace.get_current_span().get_span_context()
    if context.trace_flags.sampled and not frame.HasField("set_codec"):  # that may serve many turns
        frame.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        span = _asking.get()
        if span is not None:
            span.set_attributes({"preceptor.replica": replica, "preceptor.conversation": conversation})
