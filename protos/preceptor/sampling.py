"""Which traces of a process are kept, where there may be more than anyone looks at."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanKind, TraceState
    from opentelemetry.util.types import Attributes

__all__ = ["at_most"]


class _AtMost(Sampler):
    """Keeps the first traces of each second."""

    def __init__(self, traces_per_s: int, clock: Callable[[], float]) -> None:
        self._traces_per_s = traces_per_s
        self._clock = clock
        self._second = -1
        self._num_kept = 0

    def should_sample(
        self,
        parent_context: Context | None,  # noqa: ARG002 - as OpenTelemetry calls it
        trace_id: int,  # noqa: ARG002
        name: str,  # noqa: ARG002
        kind: SpanKind | None = None,  # noqa: ARG002
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,  # noqa: ARG002
        trace_state: TraceState | None = None,  # noqa: ARG002
    ) -> SamplingResult:
        """Says whether a trace that begins now is kept; two threads may both take a second's last place."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._num_kept = second, 0
        if self._num_kept >= self._traces_per_s:
            return SamplingResult(Decision.DROP)
        self._num_kept += 1
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

    def get_description(self) -> str:
        """Returns what stands for it in OpenTelemetry's own words."""
        return f"AtMost{{{self._traces_per_s}/s}}"


def at_most(traces_per_s: int, clock: Callable[[], float] = time.monotonic) -> Sampler:
    """Returns what keeps the first so many traces of each second, all parts of a kept one and of no other.

    Args:
        traces_per_s: at most.
        clock: seconds, monotonic.
    """
    return ParentBased(_AtMost(traces_per_s, clock))
