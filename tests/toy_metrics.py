"""What a Ray tells of its metrics, as Prometheus finds it."""

from __future__ import annotations

import time
import urllib.request
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from preceptor.v1.status_pb2 import TenantStatus
from services.teacher.metrics import exported_names
from tests.toy_service import status_told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preceptor.v1.status_pb2 import GetStatusResponse

__all__ = ["Found", "await_metrics", "scrape"]

_PATIENCE_S = 60.0


class Found:
    """What was found at the metrics ports."""

    def __init__(self, text: str) -> None:
        self._samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]
        self.names = {sample.name for sample in self._samples}

    def total(self, name: str, **labels: str) -> float:
        """The sum of all series with these labels, over the processes that tell of them."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == f"ray_preceptor_{name}" and labels.items() <= sample.labels.items()
        )


def scrape() -> Found:
    """Reads the metrics ports of the Ray that this process is connected to."""
    import ray  # noqa: PLC0415 - its environment is set first

    text = ""
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text += answer.read().decode()
    return Found(text)


def await_metrics(address: str, tenant: str, num_turns: int) -> None:
    """Waits until Prometheus would find of a tenant and the replicas what the service's directory says.

    Args:
        address: of the service.
        tenant: that has a conversation, and nothing under way.
        num_turns: that it had answered.
    """
    target, deadline_s = address.removeprefix("preceptor://"), time.monotonic() + _PATIENCE_S
    while True:
        status, found = status_told(target), scrape()
        problems = [*_problems(status, found, tenant, num_turns)]
        if not problems:
            return
        assert time.monotonic() < deadline_s, f"not as the directory says: {problems}"
        time.sleep(0.5)


def _problems(
    status: GetStatusResponse, found: Found, tenant: str, num_turns: int
) -> Iterator[tuple[object, ...]]:
    """Yields names that are missing, and numbers that differ."""
    names = {name for each in exported_names().values() for name in each}
    if not names <= found.names:
        yield ("missing", names - found.names)
        return
    of = {each.name: each for each in status.tenants}.get(tenant, TenantStatus())
    labels = {"teacher": status.teacher, "tenant": tenant}
    expected: list[tuple[str, dict[str, str], float]] = [
        ("turns_total", labels, num_turns),
        ("turns_total", labels, of.num_turns),
        ("queue_seconds_count", labels, of.num_turns),
        ("tokens_total", labels, of.num_tokens),
        ("request_bytes_total", labels, of.request_bytes),
        ("answer_bytes_total", labels, of.answer_bytes),
        ("queue_seconds_total", labels, of.queue_s),
        ("compute_seconds_total", labels, of.compute_s),
        ("refusals_total", labels, of.num_refusals),
        ("refusals_total", {**labels, "reason": "not_finite"}, of.num_refusals),
        ("conversations", labels, of.num_conversations),
    ]
    for replica in status.replicas:
        own = {"teacher": status.teacher, "replica": replica.address}
        expected += [
            ("passes_total", own, replica.num_passes),
            ("pass_turns_total", own, replica.num_computed),
            ("pass_tenants_total", own, replica.num_tenants_in_passes),
            ("graphs_total", {**own, "source": "retained"}, replica.num_retained),
            ("rows_total", {**own, "source": "cached"}, replica.num_cached_rows),
            ("rows_total", {**own, "source": "read"}, replica.num_read_rows),
            ("queued_tokens", own, replica.queued_tokens),
            ("retained_bytes", own, replica.retained_bytes),
            ("cache_bytes", own, replica.cache_bytes),
            ("conversations", own, replica.num_conversations),
        ]
    for name, tags, value in expected:
        if found.total(name, **tags) != pytest.approx(value):
            yield (name, tags, found.total(name, **tags), value)
