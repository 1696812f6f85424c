"""What one replica tells of itself: to the service's directory, and to whoever asks it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from preceptor.v1 import status_pb2 as pb
from services.teacher.environment import socket_address
from services.teacher.history import SAMPLE_PERIOD_S
from services.teacher.status import StatusBoard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from preceptor.v1.teacher_pb2 import Reason
    from services.teacher.config import ServiceConfig
    from services.teacher.engine import Engine
    from services.teacher.gate import Gate, Pass

__all__ = ["OwnStatus", "replica_of"]

logger = logging.getLogger(__name__)

_REPORT_PERIOD_S = 1.0


class OwnStatus:
    """How a replica is and was.

    Args:
        engine: the replica's.
        config: the operator's.
        gate: knows the tenants' shares; None: as the config says.
        clock: seconds of the epoch.
    """

    def __init__(
        self,
        engine: Engine,
        config: ServiceConfig,
        gate: Gate | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._weights: Mapping[str, float] = config.engine.tenant_weights if gate is None else gate.weights
        self._clock = clock
        self._teacher = config.name
        self._reported_s = self._looked_s = 0.0
        self._has_failed = False
        self._begin(socket_address(config.host, config.port))

    def report(self, address: str) -> bytes:
        """Returns what the directory is told: a `GetStatusResponse`, or nothing if that was a moment ago.

        Args:
            address: HOST:PORT of the replica; it is known once students can come.
        """
        now_s = self._clock()
        if address != self._address:
            self._begin(address)
        if 0 <= now_s - self._reported_s < _REPORT_PERIOD_S:
            return b""
        self._reported_s = now_s
        with self._undisturbing():
            return self._now().SerializeToString()
        return b""

    def look(self) -> None:
        """Adds to the history, if that is not too early."""
        now_s = self._clock()
        if not 0 <= now_s - self._looked_s < SAMPLE_PERIOD_S:
            self._looked_s = now_s
            with self._undisturbing():
                self._board.hear(self._now())

    def answer(self, shown: Pass | None, history_s: int) -> pb.GetStatusResponse:
        """See `StatusBoard.answer`."""
        self._board.hear(self._now())
        return self._board.answer(shown, history_s)

    def refused(self, tenant: str, peer: str, reason: Reason, message: str) -> None:
        """See `Signals.refused`."""
        self._engine.signals.refused(tenant, peer, reason, message)

    def _begin(self, address: str) -> None:
        self._address = address
        self._board = StatusBoard(self._teacher, self._clock)
        self._looked_s = 0.0
        self.look()

    @contextlib.contextmanager
    def _undisturbing(self) -> Iterator[None]:
        """Keeps what goes wrong while open from the students."""
        try:
            yield
        except Exception:
            if not self._has_failed:
                logger.exception("this replica can't tell how it is")
            self._has_failed = True

    def _now(self) -> pb.GetStatusResponse:
        now_s, signals = self._clock(), self._engine.signals
        return pb.GetStatusResponse(
            time_s=now_s,
            replicas=[replica_of(self._engine, self._address)],
            tenants=self._tenants(now_s),
            conversations=signals.conversations(),
            refusals=signals.refusals(),
        )

    def _tenants(self, now_s: float) -> list[pb.TenantStatus]:
        tenants = []
        for name, each in self._engine.signals.tenants().items():
            counts = each.counts
            p50_s, p99_s = each.quantiles_s(now_s, 0.5, 0.99)
            tenants.append(
                pb.TenantStatus(
                    name=name,
                    num_conversations=each.num_conversations,
                    num_turns=counts.num_turns,
                    num_tokens=counts.num_tokens,
                    request_bytes=counts.request_bytes,
                    answer_bytes=counts.answer_bytes,
                    queue_s=counts.queue_s,
                    compute_s=counts.compute_s,
                    num_refusals=counts.num_refusals,
                    weight=self._weights.get(name, 1.0),
                    queue_p50_ms=p50_s * 1000,
                    queue_p99_ms=p99_s * 1000,
                )
            )
        return tenants


def replica_of(engine: Engine, address: str) -> pb.ReplicaStatus:
    """Returns how a replica is whose students reach it at `address`, HOST:PORT."""
    signals, load, passes = engine.signals, engine.load(), engine.signals.passes
    return pb.ReplicaStatus(
        address=address,
        uptime_s=signals.clock() - signals.began_s,
        num_conversations=signals.num_conversations,
        queued_tokens=load.queued_tokens,
        queue_s=load.queue_s,
        tokens_per_s=load.tokens_per_s,
        busy_share=load.busy_share,
        num_passes=passes.num_passes,
        num_computed=passes.num_computed,
        num_tenants_in_passes=passes.num_tenants_in_passes,
        num_retained=passes.num_retained,
        num_recomputed=passes.num_recomputed,
        retained_bytes=load.retained_bytes,
        num_cached_rows=passes.num_cached_rows,
        num_read_rows=passes.num_read_rows,
        cache_bytes=0 if engine.cache is None else engine.cache.num_bytes,
        memory_bytes=_memory_bytes(engine.teacher.device),
    )


def _memory_bytes(device: torch.device) -> int:
    """Returns what is taken of the GPU's memory, or, where there is none, of the machine's; 0: not known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return 0
    num_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")
