"""Metrics without Ray: what is to be told of a replica, and when."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import pytest
import torch

from services.teacher.metrics import METRICS, QUEUE_BOUNDARIES_S, ReplicaMetrics, exported_names
from services.teacher.own_status import replica_of
from tests.toy_frames import Desk, backward, exchange, observe, opening, set_codec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.teacher.engine import Engine

REPLICA = "10.0.0.1:41501"
KINDS = {metric.name: metric for metric in METRICS}


@pytest.fixture
def desk(engine: Engine) -> Iterator[Desk]:
    with Desk(engine) as desk:
        desk.say(opening(tenant="sales"), set_codec())
        yield desk


@pytest.fixture
def source(engine: Engine) -> ReplicaMetrics:
    return ReplicaMetrics(engine, "minilm", REPLICA)


class _Told:
    """Sums of counters, last values of gauges and what histograms observed, by name and own tags."""

    def __init__(self) -> None:
        self.values: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self.observed: Counter[str] = Counter()

    def take(self, source: ReplicaMetrics) -> int:
        """Takes what is to be told now; returns how many counters have grown."""
        num_grown = 0
        for name, value, tags in source.updates():
            metric = KINDS[name]
            assert set(tags) == set(metric.tag_keys)
            assert tags["teacher"] == "minilm"
            assert tags.get("replica", REPLICA) == REPLICA
            own = [tags[key] for key in metric.tag_keys if key not in ("teacher", "replica")]
            key = (name.removeprefix("preceptor_"), *own)
            if metric.kind == "counter":
                assert value > 0
                self.values[key] += value
                num_grown += 1
            elif metric.kind == "gauge":
                self.values[key] = value
            else:
                assert 0 <= value < QUEUE_BOUNDARIES_S[-1]
                self.observed[tags["tenant"]] += 1
        return num_grown


def test_what_is_told_is_what_was_counted_however_often_it_is_told(
    desk: Desk, engine: Engine, source: ReplicaMetrics
) -> None:
    told = _Told()
    for turn in (1, 2):
        desk.say(exchange(turn))
        told.take(source)
        desk.say(backward(turn), observe(turn + 10))
        told.take(source)
    desk.say(exchange(5, torch.full((2, 2, 3), torch.nan)))
    told.take(source)
    counts = engine.signals.tenants()["sales"].counts
    for kind in ("exchange", "backward", "observe"):
        assert told.values["turns_total", "sales", kind] == counts.turns[kind] == 2
    assert told.values["refusals_total", "sales", "not_finite"] == 1
    assert told.values["tokens_total", "sales"] == counts.num_tokens > 0
    assert told.values["request_bytes_total", "sales"] == counts.request_bytes > 0
    assert told.values["answer_bytes_total", "sales"] == counts.answer_bytes > 0
    assert told.values["queue_seconds_total", "sales"] == pytest.approx(counts.queue_s)
    assert told.values["compute_seconds_total", "sales"] == pytest.approx(counts.compute_s)
    assert told.values["conversations", "sales"] == 1
    assert told.observed == {"sales": 6}
    status = replica_of(engine, REPLICA)
    assert told.values["passes_total",] == status.num_passes > 0
    assert told.values["pass_turns_total",] == status.num_computed >= 6
    assert told.values["pass_tenants_total",] == status.num_tenants_in_passes
    assert told.values["graphs_total", "retained"] == status.num_retained == 2
    assert told.values["rows_total", "read"] == status.num_read_rows
    assert told.values["rows_total", "cached"] == status.num_cached_rows > 0
    assert told.values["memory_bytes",] > 0


def test_without_turns_no_counter_grows_and_every_gauge_of_the_replica_is_told_again(
    desk: Desk, source: ReplicaMetrics
) -> None:
    desk.say(exchange(1))
    told = _Told()
    assert told.take(source) > 0
    told.values.clear()
    assert told.take(source) == 0
    gauges = {name.removeprefix("preceptor_") for name, metric in KINDS.items() if metric.kind == "gauge"}
    assert {name for name, *_ in told.values} == gauges


def test_a_tenant_that_has_left_is_told_of_with_none_once(
    engine: Engine, desk: Desk, source: ReplicaMetrics
) -> None:
    told = _Told()
    told.take(source)
    assert told.values["conversations", "sales"] == 1
    engine.signals.ended(desk.conversation.signals, "the student left")
    told.take(source)
    assert told.values["conversations", "sales"] == 0
    assert "preceptor_conversations" not in {update.name for update in source.updates()}


def test_each_metric_has_one_name_of_its_own_at_prometheus() -> None:
    names = [name for each in exported_names().values() for name in each]
    assert len(names) == len(set(names)) == len(METRICS) + 2
    assert all(metric.description.endswith(".") for metric in METRICS)
    assert all((metric.kind == "counter") == metric.name.endswith("_total") for metric in METRICS)
