"""Tells Ray, and so Prometheus at the node's metrics port, of a replica's numbers; every two seconds."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Protocol

from ray.util import metrics as ray_metrics

from services.teacher.metrics import METRICS, QUEUE_BOUNDARIES_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.teacher.metrics import Metric, Update

__all__ = ["MetricsPusher", "UpdateSource"]

logger = logging.getLogger(__name__)

_PERIOD_S = 2.0  # gauges that are not set for 20 s go


class UpdateSource(Protocol):
    """Says what is to be told, as `ReplicaMetrics` does."""

    def updates(self) -> Iterable[Update]:
        """Returns what has changed since it was asked last."""
        ...


class MetricsPusher:
    """Tells on a thread of its own, until it is stopped.

    Args:
        source: says what is to be told.
        period_s: seconds between two times.
    """

    def __init__(self, source: UpdateSource, period_s: float = _PERIOD_S) -> None:
        self._source = source
        self._period_s = period_s
        self._metrics = {metric.name: _built(metric) for metric in METRICS}
        self._is_stopped = threading.Event()
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="teacher-metrics", daemon=True)

    def start(self) -> None:
        """Begins to tell."""
        self._thread.start()

    def stop(self) -> None:
        """Tells the rest, and ends the thread; what Ray has not taken from the process by its end is lost."""
        self._is_stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_stopped.wait(self._period_s):
            self._push()
        self._push()

    def _push(self) -> None:
        try:
            for update in self._source.updates():
                self._tell(update)
        except Exception:  # numbers are not worth a replica
            if not self._has_failed:
                logger.exception("the metrics were not told")
            self._has_failed = True

    def _tell(self, update: Update) -> None:
        metric = self._metrics[update.name]
        if isinstance(metric, ray_metrics.Counter):
            metric.inc(update.value, update.tags)
        elif isinstance(metric, ray_metrics.Gauge):
            metric.set(update.value, update.tags)
        else:
            metric.observe(update.value, update.tags)


def _built(metric: Metric) -> Any:
    """Returns Ray's metric; its two lists of a histogram's name and a counter's don't meet at Prometheus."""
    fields: dict[str, Any] = {"description": metric.description, "tag_keys": metric.tag_keys}
    if metric.kind == "histogram":
        return ray_metrics.Histogram(metric.name, boundaries=QUEUE_BOUNDARIES_S, **fields)
    kind = ray_metrics.Counter if metric.kind == "counter" else ray_metrics.Gauge
    return kind(metric.name, **fields)
