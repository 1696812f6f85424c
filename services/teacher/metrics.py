"""The metrics of a service: their one table, and what a replica has to add to them every few seconds.

What was counted is read off the replica's signals; nothing here is called for a turn. Knows nothing of Ray,
which takes the numbers; see `ray_metrics`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from preceptor.v1.teacher_pb2 import Reason
from services.teacher.counts import Counts
from services.teacher.own_status import replica_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from services.teacher.counts import TenantSignals
    from services.teacher.engine import Engine

__all__ = ["METRICS", "QUEUE_BOUNDARIES_S", "Metric", "ReplicaMetrics", "Update", "exported_names"]

_TENANT = ("teacher", "tenant")
_REPLICA = ("teacher", "replica")

# The last is above any wait: students give up before.
QUEUE_BOUNDARIES_S = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 600.0]
_MAX_OBSERVED = 400  # turns whose delays are told at once, 14 us each; more would tell nothing new


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: before Ray's prefix.
        kind: what it is.
        description: for people.
        tag_keys: all of which it always has.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    tag_keys: tuple[str, ...]


def _counter(name: str, description: str, *tag_keys: str) -> Metric:
    return Metric(f"preceptor_{name}_total", "counter", description, tag_keys)


def _gauge(name: str, description: str, *tag_keys: str) -> Metric:
    return Metric(f"preceptor_{name}", "gauge", description, tag_keys)


METRICS = (
    _counter("turns", "Turns answered.", *_TENANT, "kind"),
    _counter("tokens", "Rows x positions computed.", *_TENANT),
    _counter("request_bytes", "Bytes of students' frames.", *_TENANT),
    _counter("answer_bytes", "Bytes of the frames that answered them.", *_TENANT),
    _counter("queue_seconds", "Seconds that turns waited, added up.", *_TENANT),
    _counter("compute_seconds", "Seconds of computation, each tenant's part of shared passes.", *_TENANT),
    _counter("refusals", "What was refused or failed.", *_TENANT, "reason"),
    Metric("preceptor_queue_seconds", "histogram", "Seconds that a turn waited.", _TENANT),
    _gauge("conversations", "Conversations that are open.", *_REPLICA, "tenant"),
    _counter("passes", "Passes of the teacher, forward and backward.", *_REPLICA),
    _counter("pass_turns", "Turns computed in passes.", *_REPLICA),
    _counter("pass_tenants", "Tenants that shared passes, added up over passes.", *_REPLICA),
    _counter("graphs", "Backward passes, by where their graph came from.", *_REPLICA, "source"),
    _counter("rows", "Rows of inputs, by where their reading came from.", *_REPLICA, "source"),
    _gauge("queued_tokens", "Rows x positions that wait.", *_REPLICA),
    _gauge("queue_delay_seconds", "Seconds that what waits will take.", *_REPLICA),
    _gauge("tokens_per_second", "Rows x positions in a second of computation, of late.", *_REPLICA),
    _gauge("busy_share", "The share of the last seconds that it computed, 0 to 1.", *_REPLICA),
    _gauge("retained_bytes", "Bytes of graphs that wait for their gradients.", *_REPLICA),
    _gauge("cache_bytes", "Bytes of the cache in memory.", *_REPLICA),
    _gauge("memory_bytes", "Bytes of memory: of the process, or of its GPU.", *_REPLICA),
)


def exported_names() -> dict[str, list[str]]:
    """Returns what Prometheus finds at Ray's metrics ports, by the metric's name here."""
    return {
        metric.name: [
            f"ray_{metric.name}{end}"
            for end in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
        ]
        for metric in METRICS
    }


class Update(NamedTuple):
    """What is to be done to a metric: a counter grows, a gauge is set, a histogram observes."""

    name: str
    value: float
    tags: dict[str, str]


@dataclass(slots=True)
class _Told:
    """What was told of a tenant before."""

    counts: Counts = field(default_factory=Counts)
    num_conversations: int = 0


class ReplicaMetrics:
    """Says what has to be told of a replica since it was asked last.

    Args:
        engine: the replica's.
        teacher: the service's name.
        replica: HOST:PORT.
        clock: seconds of the epoch.
    """

    def __init__(
        self, engine: Engine, teacher: str, replica: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._teacher = {"teacher": teacher}
        self._replica = {"teacher": teacher, "replica": replica}
        self._clock = clock
        self._told: dict[str, _Told] = {}
        self._told_of_passes: dict[tuple[str, str], float] = {}
        self._observed_until_s = 0.0

    def updates(self) -> Iterator[Update]:
        """Yields what has happened since it was called last; to be taken to its end."""
        now_s = self._clock()
        tenants = self._engine.signals.tenants()
        for name, tenant in tenants.items():
            told = self._told.setdefault(name, _Told())
            yield from self._of_counts(name, told.counts, tenant.counts)
            if tenant.num_conversations or told.num_conversations:
                tags = {**self._replica, "tenant": name}
                yield Update("preceptor_conversations", tenant.num_conversations, tags)
            told.counts, told.num_conversations = tenant.counts, tenant.num_conversations
        yield from self._of_delays(tenants.items(), now_s)
        self._observed_until_s = now_s
        yield from self._of_replica()

    def _of_counts(self, tenant: str, old: Counts, new: Counts) -> Iterator[Update]:
        tags = {**self._teacher, "tenant": tenant}
        for kind, number in new.turns.items():
            yield from _grown("turns", old.turns[kind], number, {**tags, "kind": kind})
        for reason, number in new.refusals.items():
            named = Reason.Name(Reason.ValueType(reason)).removeprefix("REASON_").lower()
            yield from _grown("refusals", old.refusals[reason], number, {**tags, "reason": named})
        yield from _grown("tokens", old.num_tokens, new.num_tokens, tags)
        yield from _grown("request_bytes", old.request_bytes, new.request_bytes, tags)
        yield from _grown("answer_bytes", old.answer_bytes, new.answer_bytes, tags)
        yield from _grown("queue_seconds", old.queue_s, new.queue_s, tags)
        yield from _grown("compute_seconds", old.compute_s, new.compute_s, tags)

    def _of_delays(self, tenants: Iterable[tuple[str, TenantSignals]], now_s: float) -> Iterator[Update]:
        since_s = self._observed_until_s
        fresh = {
            name: [delay_s for then_s, delay_s in list(tenant.delays) if since_s <= then_s < now_s]
            for name, tenant in tenants
        }
        num_fresh = sum(map(len, fresh.values()))
        step = max(1, -(-num_fresh // _MAX_OBSERVED))
        for name, delays in fresh.items():
            tags = {**self._teacher, "tenant": name}
            for delay_s in delays[::step]:
                yield Update("preceptor_queue_seconds", delay_s, tags)

    def _of_replica(self) -> Iterator[Update]:
        status, tags = replica_of(self._engine, self._replica["replica"]), self._replica
        counters = {
            ("passes", ""): status.num_passes,
            ("pass_turns", ""): status.num_computed,
            ("pass_tenants", ""): status.num_tenants_in_passes,
            ("graphs", "retained"): status.num_retained,
            ("graphs", "recomputed"): status.num_recomputed,
            ("rows", "cached"): status.num_cached_rows,
            ("rows", "read"): status.num_read_rows,
        }
        for (name, source), number in counters.items():
            old = self._told_of_passes.get((name, source), 0)
            yield from _grown(name, old, number, {**tags, "source": source} if source else tags)
        self._told_of_passes.update(counters)
        gauges = {
            "queued_tokens": status.queued_tokens,
            "queue_delay_seconds": status.queue_s,
            "tokens_per_second": status.tokens_per_s,
            "busy_share": status.busy_share,
            "retained_bytes": status.retained_bytes,
            "cache_bytes": status.cache_bytes,
            "memory_bytes": status.memory_bytes,
        }
        for name, value in gauges.items():
            yield Update(f"preceptor_{name}", value, tags)


def _grown(name: str, old: float, new: float, tags: dict[str, str]) -> Iterator[Update]:
    """Yields what a counter has grown by, if it has; one that was named anew may have shrunk."""
    if new > old:
        yield Update(f"preceptor_{name}_total", new - old, tags)
