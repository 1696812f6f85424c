"""Where the spans of a process go: a file that gets a line of JSON for each, or a collector that speaks OTLP.

Spans are handed to a thread that sends them away in batches; where it can't keep up they are dropped, and
nothing that can happen to them is told to who made them. OpenTelemetry's SDK is only imported once spans are
asked for.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import re
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry import trace

from preceptor import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.sampling import Sampler

__all__ = [
    "Tracing",
    "check_target",
    "check_tracing_installed",
    "line_of",
    "resolved_target",
    "resource_json",
]

logger = logging.getLogger(__name__)

_SCHEME = "otlp://"
_COLLECTOR = re.compile(r"otlp://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_EXPORTER = "opentelemetry.exporter.otlp.proto.grpc"
_BATCH_MS = 1000.0
_MAX_QUEUED = 8192
_MAX_BATCH = 512
_UNSET = trace.Status()
_COLLECTOR_TIMEOUT_S = 3  # also what a stop waits for a collector that is away


def check_target(target: str | None) -> str | None:
    """Returns where spans go, as a config says it: a file, `otlp://HOST:PORT`, or None.

    Raises:
        ValueError: it is something else.
    """
    if target is not None and (not target or ("://" in target and not _COLLECTOR.fullmatch(target))):
        raise ValueError("traces: expected a file, or otlp://HOST:PORT of a collector")
    return target


def resolved_target(target: str | None, folder: Path) -> str | None:
    """Returns the same with a path that holds anywhere, relative ones taken from `folder`."""
    return target if target is None or target.startswith(_SCHEME) else str(folder / target)


def check_tracing_installed(target: str | None) -> None:
    """Makes sure that what spans are sent with is there.

    Raises:
        ValueError: it is not; says how to get it.
    """
    if target is None:
        return
    wanted = ["opentelemetry.sdk", *([_EXPORTER] if target.startswith(_SCHEME) else [])]
    missing = [name for name in wanted if not _is_installed(name)]
    if missing:
        raise ValueError(
            f"traces: {missing[0]} is not installed; get it with: pip install 'preceptor[tracing]'"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


class Tracing:
    """Makes the spans of one process and sends them away.

    Args:
        target: a file that is appended to, also by other processes, or `otlp://HOST:PORT`.
        service: "preceptor-teacher", "preceptor-student".
        facts: attributes of all of its spans.
        max_traces_per_s: that `tracer` begins; of those beyond nothing is kept. None: all are.

    Attributes:
        tracer: makes spans of what is going on.

    Raises:
        ValueError: what it needs is not installed.
    """

    def __init__(
        self,
        target: str,
        service: str,
        facts: Mapping[str, str] | None = None,
        max_traces_per_s: int | None = None,
    ) -> None:
        check_tracing_installed(target)
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - optional
        from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        self._resource = Resource.create(
            {"service.name": service, "service.version": __version__, **(facts or {})}
        )
        self._is_closing = False
        self._processor = BatchSpanProcessor(
            _exporter(target, lambda: self._is_closing),
            max_queue_size=_MAX_QUEUED,
            schedule_delay_millis=_BATCH_MS,
            max_export_batch_size=_MAX_BATCH,
        )
        self._span_of = ReadableSpan
        self._provider = TracerProvider(
            resource=self._resource, shutdown_on_exit=False, sampler=_sampler(max_traces_per_s)
        )
        self._provider.add_span_processor(self._processor)
        self.tracer = self._provider.get_tracer("preceptor", __version__)

    def add(
        self,
        name: str,
        parent: trace.SpanContext,
        times_ns: tuple[int, int],
        *,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: Mapping[str, str | int | float] | None = None,
        error: str = "",
    ) -> trace.SpanContext:
        """Adds a span of what is over already, and returns it as a parent; a tenth of the price of others.

        Args:
            name: of the span.
            parent: whose part it was; has been sampled.
            times_ns: when it began and ended, nanoseconds of the epoch.
            kind: on which side it was.
            attributes: what is to be known of it.
            error: why it failed; empty: it did not.
        """
        context = trace.SpanContext(
            parent.trace_id,
            self._provider.id_generator.generate_span_id(),
            is_remote=False,
            trace_flags=parent.trace_flags,
        )
        status = trace.Status(trace.StatusCode.ERROR, error) if error else _UNSET
        self._processor.on_end(
            self._span_of(
                name,
                context,
                parent,
                self._resource,
                attributes,
                kind=kind,
                status=status,
                start_time=times_ns[0],
                end_time=times_ns[1],
            )
        )
        return context

    def close(self) -> None:
        """Sends what there is, within a few seconds if the collector is away, and ends the thread."""
        self._is_closing = True
        self._provider.shutdown()


def _sampler(max_traces_per_s: int | None) -> Sampler:
    from opentelemetry.sdk.trace.sampling import DEFAULT_ON  # noqa: PLC0415 - optional

    from preceptor.sampling import at_most  # noqa: PLC0415 - needs the same

    return DEFAULT_ON if max_traces_per_s is None else at_most(max_traces_per_s)


def _exporter(target: str, is_closing: Callable[[], bool]) -> SpanExporter:
    """Returns what sends batches to a target, and says once that it can't; at the end it then gives up."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult  # noqa: PLC0415 - optional

    send = _collector(target.removeprefix(_SCHEME)) if target.startswith(_SCHEME) else _file(Path(target))

    class Exporter(SpanExporter):
        _has_failed = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            if self._has_failed and is_closing():  # each batch would take its time to fail
                return SpanExportResult.FAILURE
            problem = send(spans)
            if problem and not self._has_failed:
                logger.warning("traces: %s gets no spans: %s", target, problem)
            self._has_failed = bool(problem)
            return SpanExportResult.FAILURE if problem else SpanExportResult.SUCCESS

    return Exporter()


def _collector(address: str) -> Callable[[Sequence[ReadableSpan]], str]:
    """Returns what sends spans to a collector, and why that failed; empty: it did not."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415 - optional
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415

    # It would tell of each batch anew.
    logging.getLogger(f"{_EXPORTER}.exporter").setLevel(logging.CRITICAL)
    exporter = OTLPSpanExporter(endpoint=address, insecure=True, timeout=_COLLECTOR_TIMEOUT_S)

    def send(spans: Sequence[ReadableSpan]) -> str:
        is_taken = exporter.export(spans) is SpanExportResult.SUCCESS
        return "" if is_taken else "it does not answer, or does not take them"

    return send


def _file(path: Path) -> Callable[[Sequence[ReadableSpan]], str]:
    """Returns the same for a file; it is opened for each batch, so that it may be moved away."""
    resource = ""

    def send(spans: Sequence[ReadableSpan]) -> str:
        nonlocal resource
        resource = resource or resource_json(spans[0].resource)
        lines = "".join(f"{line_of(span, resource)}\n" for span in spans)
        try:
            _append(path, lines.encode())
        except OSError as error:
            return error.strerror or str(error)
        return ""

    return send


def _append(path: Path, content: bytes) -> None:
    """Appends in one piece, since others may append to the file too; what a full disk cuts off is lost."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        if os.write(file, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


def line_of(span: ReadableSpan, resource: str | None = None) -> str:
    """Returns what `span.to_json(indent=None)` says, in a fifth of its time.

    Args:
        span: that has ended.
        resource: its resource's part of the line, if it is known already; see `resource_json`.
    """
    context, parent = span.context, span.parent
    parent_id = "null" if parent is None else f'"0x{parent.span_id:016x}"'
    status = {"status_code": span.status.status_code.name}
    if span.status.description:
        status["description"] = span.status.description
    return (
        f'{{"name": {json.dumps(span.name)}, "context": {{"trace_id": "0x{context.trace_id:032x}", '
        f'"span_id": "0x{context.span_id:016x}", "trace_state": "{context.trace_state!r}"}}, '
        f'"kind": "{span.kind}", "parent_id": {parent_id}, '
        f'"start_time": "{_iso(span.start_time or 0)}", "end_time": "{_iso(span.end_time or 0)}", '
        f'"status": {json.dumps(status)}, "attributes": {json.dumps(dict(span.attributes or {}))}, '
        f'"events": [], "links": [], "resource": {resource or resource_json(span.resource)}}}'
    )


def resource_json(resource: Resource) -> str:
    """Returns the part of a line that is the same for all spans of a process."""
    return json.dumps({"attributes": dict(resource.attributes), "schema_url": resource.schema_url})


def _iso(time_ns: int) -> str:
    """Returns nanoseconds of the epoch as a time in UTC."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{_iso_of_second(seconds)}.{rest // 1000:06d}Z"


@lru_cache(maxsize=64)
def _iso_of_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
