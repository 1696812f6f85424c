"""The last minutes of a service: what its tenants had in each while, and how busy its replicas were."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from preceptor.names import OTHERS
from preceptor.v1 import status_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["HISTORY_S", "SAMPLED", "SAMPLE_PERIOD_S", "History"]

SAMPLE_PERIOD_S = 2.0
HISTORY_S = 600.0
SAMPLED = ("num_turns", "num_tokens", "queue_s", "compute_s", "num_refusals")


@dataclass(frozen=True)
class _Sample:
    """A moment; tenants' samples are kept as bytes: there may be a thousand of them in each."""

    time_s: float
    head: bytes
    total: pb.TenantSample
    tenants: Mapping[str, bytes]


class History:
    """Samples of a service.

    Args:
        now_s: when it begins, seconds of the epoch.
    """

    def __init__(self, now_s: float) -> None:
        self._sampled_s = now_s
        self._growing: dict[str, pb.TenantSample] = {}
        self._samples: deque[_Sample] = deque()

    def grow(self, tenant: str, grown: Mapping[str, float]) -> None:
        """Adds what a tenant had since the last sample.

        Args:
            tenant: its name.
            grown: amounts, by field of `SAMPLED`; others are left out.
        """
        sample = self._growing.setdefault(tenant, pb.TenantSample(name=tenant))
        _add(sample, grown)

    def look(self, now_s: float, replicas: Sequence[pb.ReplicaStatus]) -> None:
        """Takes a sample if it is time for one, and drops old ones.

        If the clock was set back, what was sampled moves with it, so that the last sample is a period ago.

        Args:
            now_s: seconds of the epoch.
            replicas: those that take conversations.
        """
        if now_s < self._sampled_s:
            self._move(now_s - SAMPLE_PERIOD_S - self._sampled_s)
        if now_s - self._sampled_s >= SAMPLE_PERIOD_S:
            self._samples.append(self._sample(now_s, replicas))
            self._growing, self._sampled_s = {}, now_s
        while self._samples and self._samples[0].time_s < now_s - HISTORY_S:
            self._samples.popleft()

    def since(self, then_s: float, names: Collection[str], *, with_rest: bool) -> list[pb.StatusSample]:
        """Returns the samples since a moment, the oldest first.

        Args:
            then_s: seconds of the epoch.
            names: tenants that are wanted.
            with_rest: whether those who are not are added up, as `OTHERS`.
        """
        return [
            _told(sample, names, with_rest=with_rest) for sample in self._samples if sample.time_s > then_s
        ]

    def _move(self, by_s: float) -> None:
        self._sampled_s += by_s
        self._samples = deque(replace(sample, time_s=sample.time_s + by_s) for sample in self._samples)

    def _sample(self, now_s: float, replicas: Sequence[pb.ReplicaStatus]) -> _Sample:
        head = pb.StatusSample(
            queued_tokens=sum(replica.queued_tokens for replica in replicas),
            busy_share=sum(replica.busy_share for replica in replicas) / max(len(replicas), 1),
            num_replicas=len(replicas),
        )
        total = pb.TenantSample(name=OTHERS)
        for each in self._growing.values():
            _add(total, {field: getattr(each, field) for field in SAMPLED})
        tenants = {name: each.SerializeToString() for name, each in self._growing.items()}
        return _Sample(now_s, head.SerializeToString(), total, tenants)


def _told(sample: _Sample, names: Collection[str], *, with_rest: bool) -> pb.StatusSample:
    told = pb.StatusSample.FromString(sample.head)
    told.time_s = sample.time_s
    for name in sample.tenants.keys() & names:
        told.tenants.add().MergeFromString(sample.tenants[name])
    if with_rest and len(told.tenants) < len(sample.tenants):
        rest = pb.TenantSample()
        rest.CopyFrom(sample.total)
        for field in SAMPLED:
            named = sum(getattr(each, field) for each in told.tenants)
            setattr(rest, field, max(getattr(rest, field) - named, 0))
        told.tenants.append(rest)
    return told


def _add(sample: pb.TenantSample, grown: Mapping[str, float]) -> None:
    for field in SAMPLED:
        if field in grown:
            setattr(sample, field, getattr(sample, field) + grown[field])
