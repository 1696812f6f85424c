"""What the dashboard shows: rows of panels, and what each asks Prometheus.

Names are those that Prometheus sees (`services.teacher.metrics.exported_names`). Counters of replicas that
are gone stay where they were, so only their growth is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ROWS", "VARIABLES", "Panel", "Query"]

_EACH = '{teacher=~"$teacher",tenant=~"$tenant"}'
_REPLICA = '{teacher=~"$teacher",replica=~"$replica"}'
_ALL = '{teacher=~"$teacher"}'
_COMPUTE = "compute_seconds"


@dataclass(frozen=True)
class Query:
    """A question to Prometheus.

    Attributes:
        expr: in PromQL, with Grafana's variables.
        legend: what its series are called; Grafana fills in labels.
    """

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A panel of the dashboard.

    Attributes:
        title: says what is seen.
        description: says what to make of it.
        queries: what is shown in it.
        unit: Grafana's name of the unit.
        kind: Grafana's name of how it looks.
        width: of the 24 columns of a row.
        stacked: whether series stand on each other.
        most: where the axis ends; None: where the values do.
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "bargauge"] = "timeseries"
    width: int = 8
    stacked: bool = False
    most: float | None = None


# Variables of the dashboard, and the metric and label that each has its values from.
VARIABLES = {
    "teacher": ("ray_preceptor_busy_share", "teacher"),
    "tenant": (f"ray_preceptor_turns_total{_ALL}", "tenant"),
    "replica": (f"ray_preceptor_busy_share{_ALL}", "replica"),
}


def _rate(name: str, by: str = "", chosen: str = _EACH) -> str:
    """The growth of a counter in a second, added up over whoever counts."""
    growth = f"(rate(ray_preceptor_{name}_total{chosen}[$__rate_interval]))"
    return f"sum by ({by}) {growth}" if by else f"sum{growth}"


def _growth(name: str) -> str:
    """The growth of a tenant's counter in the dashboard's range of time."""
    return f"sum by (tenant) (increase(ray_preceptor_{name}_total{_EACH}[$__range]))"


def _gauge(name: str, by: str = "replica", chosen: str = _REPLICA) -> str:
    return f"sum by ({by}) (ray_preceptor_{name}{chosen})"


def _queue_delay(quantile: float, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    buckets = f"rate(ray_preceptor_queue_seconds_bucket{_EACH}[$__rate_interval])"
    return f"histogram_quantile({quantile:g}, sum by ({labels}) ({buckets}))"


def _part(name: str, source: str) -> str:
    """The part that one source has in a replica's counter; one not used yet has no series."""
    total, one = (
        _rate(name, "replica", chosen) for chosen in (_REPLICA, f'{_REPLICA[:-1]},source="{source}"}}')
    )
    return f"({one} or 0 * {total}) / {total}"


def _by_pass(name: str) -> str:
    """What a replica's passes have, on average."""
    return f"{_rate(f'pass_{name}', 'replica', _REPLICA)} / {_rate('passes', 'replica', _REPLICA)}"


_NOW = (
    Panel(
        "Replicas",
        "Replicas that take conversations.",
        (Query(f"count(ray_preceptor_busy_share{_REPLICA})"),),
        kind="stat",
        width=4,
    ),
    Panel(
        "Conversations", "Open.", (Query(f"sum(ray_preceptor_conversations{_EACH})"),), kind="stat", width=4
    ),
    Panel("Turns a second", "Turns answered.", (Query(_rate("turns")),), kind="stat", width=4),
    Panel(
        "Queue delay, p99",
        "How long turns wait before they are computed.",
        (Query(_queue_delay(0.99)),),
        unit="s",
        kind="stat",
        width=4,
    ),
    Panel(
        "Busy",
        "The share of time that replicas compute. Past 90 % turns wait.",
        (Query(f"avg(ray_preceptor_busy_share{_REPLICA})"),),
        unit="percentunit",
        kind="stat",
        width=4,
    ),
    Panel(
        "Refusals a minute",
        "What was refused or failed.",
        (Query(f"60 * {_rate('refusals')} or vector(0)"),),
        kind="stat",
        width=4,
    ),
)

_STUDENTS = (
    Panel(
        "Queue delay",
        "How long turns wait before they are computed: what a busy teacher costs students.",
        (Query(_queue_delay(0.5), "p50"), Query(_queue_delay(0.99), "p99")),
        unit="s",
    ),
    Panel(
        "Queue delay by tenant, p99",
        "Tenants of one weight who ask for as much wait alike.",
        (Query(_queue_delay(0.99, "tenant"), "{{tenant}}"),),
        unit="s",
    ),
    Panel(
        "Queue delay by tenant, mean",
        "The time that turns waited, by turns.",
        (Query(f"{_rate('queue_seconds', 'tenant')} / {_rate('turns', 'tenant')}", "{{tenant}}"),),
        unit="s",
    ),
    Panel(
        "Turns a second, by kind",
        "Turns answered: exchanges, observations and gradients.",
        (Query(_rate("turns", "kind"), "{{kind}}"),),
        stacked=True,
    ),
    Panel(
        "Refusals a minute, by reason",
        "What was refused or failed. What to do about each: docs/debug.md.",
        (Query(f"60 * {_rate('refusals', 'reason')}", "{{reason}}"),),
        stacked=True,
    ),
    Panel(
        "Conversations by tenant",
        "Open now, on all replicas.",
        (Query(_gauge("conversations", "tenant", _EACH), "{{tenant}}"),),
        stacked=True,
    ),
)

_FAIRNESS = (
    Panel(
        "Share of compute by tenant",
        "Of all that is computed. While tenants ask for more than there is, shares go by their weights.",
        (Query(f"{_rate(_COMPUTE, 'tenant')} / scalar({_rate(_COMPUTE, chosen=_ALL)})", "{{tenant}}"),),
        unit="percentunit",
        stacked=True,
        most=1,
    ),
    Panel(
        "Compute by tenant",
        "Seconds of computation in a second: replicas that are busy for a tenant.",
        (Query(_rate(_COMPUTE, "tenant"), "{{tenant}}"),),
        stacked=True,
    ),
    Panel(
        "Turns that wait, by tenant",
        "Seconds waited in a second: the mean number of turns in the queue.",
        (Query(_rate("queue_seconds", "tenant"), "{{tenant}}"),),
        stacked=True,
    ),
)

_REPLICAS = (
    Panel(
        "Busy",
        "The share of time that each computes. One that is busier than the others has conversations to give.",
        (Query(_gauge("busy_share"), "{{replica}}"),),
        unit="percentunit",
        most=1,
    ),
    Panel("Queued tokens", "Rows x positions that wait.", (Query(_gauge("queued_tokens"), "{{replica}}"),)),
    Panel(
        "Time to work the queue off",
        "At the rate of late. Replicas are added while it is above autoscaling's target.",
        (Query(_gauge("queue_delay_seconds"), "{{replica}}"),),
        unit="s",
    ),
    Panel(
        "Tokens in a second of computation",
        "How fast each is while it computes.",
        (Query(_gauge("tokens_per_second"), "{{replica}}"),),
    ),
    Panel(
        "Turns in a batch",
        "Turns that share a pass. It grows with the queue, which is why a busy teacher does more.",
        (Query(_by_pass("turns"), "{{replica}}"),),
    ),
    Panel(
        "Tenants in a batch",
        "Tenants that share a pass.",
        (Query(_by_pass("tenants"), "{{replica}}"),),
    ),
    Panel(
        "Backward passes whose graph was kept",
        "The others compute their forward pass again: engine.max_retained_bytes is full, or a student slow.",
        (Query(_part("graphs", "retained"), "{{replica}}"),),
        unit="percentunit",
        most=1,
    ),
    Panel(
        "Rows read from the cache",
        "Of all rows whose reading was asked for. A first epoch has none.",
        (Query(_part("rows", "cached"), "{{replica}}"),),
        unit="percentunit",
        most=1,
    ),
    Panel(
        "Memory",
        "Of the process, or of the GPU where there is one; graphs that wait for gradients; cached readings.",
        (
            Query(_gauge("memory_bytes"), "{{replica}} all"),
            Query(_gauge("retained_bytes"), "{{replica}} graphs"),
            Query(_gauge("cache_bytes"), "{{replica}} cache"),
        ),
        unit="bytes",
    ),
)

_MISSED = " In the time that is chosen above; what a replica did before it was first asked is not in it."
_MONEY = (
    Panel(
        "Tokens by tenant",
        "Rows x positions computed." + _MISSED,
        (Query(_growth("tokens"), "{{tenant}}"),),
        kind="bargauge",
    ),
    Panel(
        "Computation by tenant",
        "Time of replicas, a tenant's part where it was shared." + _MISSED,
        (Query(_growth(_COMPUTE), "{{tenant}}"),),
        unit="s",
        kind="bargauge",
    ),
    Panel(
        "Traffic by tenant",
        "Bytes of frames, both ways." + _MISSED,
        (Query(f"{_growth('request_bytes')} + {_growth('answer_bytes')}", "{{tenant}}"),),
        unit="bytes",
        kind="bargauge",
    ),
    Panel(
        "Tokens a second, by tenant",
        "Rows x positions computed.",
        (Query(_rate("tokens", "tenant"), "{{tenant}}"),),
        stacked=True,
        width=12,
    ),
    Panel(
        "Traffic",
        "Bytes of frames in a second.",
        (Query(_rate("request_bytes"), "requests"), Query(_rate("answer_bytes"), "answers")),
        unit="Bps",
        width=12,
    ),
)

ROWS = {
    "Now": _NOW,
    "What students feel": _STUDENTS,
    "Fairness": _FAIRNESS,
    "Replicas": _REPLICAS,
    "Money": _MONEY,
}
