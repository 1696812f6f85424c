"""Where the spans of a process go: a file that gets a line of JSON for each, or a collector that speaks OTLP.

Spans are handed to a thread that sends them away in batches; where it can't keep up they are dropped, and
nothing that can happen to them is told to who made them. OpenTelemetry's SDK is only imported once spans are
asked for.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry import trace

from preceptor import __version__
from preceptor.span_file import file_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.sampling import Sampler

__all__ = [
    "Tracing",
    "check_target",
    "check_tracing_installed",
    "resolved_target",
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

    send = _collector(target.removeprefix(_SCHEME)) if target.startswith(_SCHEME) else file_of(Path(target))

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
