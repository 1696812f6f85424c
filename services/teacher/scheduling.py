"""Decides what the teacher computes next, and with whom.

    admit ─┬─ gradients of a kept pass ──> wait for the others of their pass ──┬─> one backward pass
           └─ everything else ──> Backlog (fair shares by tenant) <── too late ┘
                                     └─> what shares layers, kind and length, under a token budget

Gradients of a kept pass go before new turns: they free memory, and there are never more of them than turns
that were served in their turn. An idle teacher waits a little for conversations that are about to come back
(see `rhythm`); a busy one never waits. Nothing a result depends on is decided here.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING
from weakref import WeakSet

from services.teacher.backlog import Backlog, num_charged_tokens
from services.teacher.errors import OverloadedError
from services.teacher.retries import RetryLines
from services.teacher.rhythm import Rhythm
from services.teacher.work import BackwardWork, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from services.teacher.graphs import GraphStore
    from services.teacher.passes import Pass
    from services.teacher.work import Work

__all__ = ["FairQueue"]

# The backward pass of a whole graph costs 2 a token; computing some of its turns again and then their
# gradients costs 3 a token of theirs. So a graph is used once two thirds of it are wanted.
_WORTH_USING = 2 / 3

_SMOOTHING = 0.2
_SHORTEST_RETRY_S = 0.05


class FairQueue:
    """The queue of an engine that serves many tenants; a `WorkQueue`.

    Args:
        graphs: the passes that are kept.
        key_of: what pieces of work must have in common to be computed together.
        max_batch_tokens: rows x positions of one pass; a larger turn has a pass of its own.
        max_queued_tokens: rows x positions that may wait.
        max_wait_s: how long an idle teacher waits at most for others, in seconds.
        weights: shares of service by tenant; 1 for those not named. May change.
        max_queued_by_tenant: rows x positions of those tenants that may wait. May change.
        clock: seconds, monotonic; the engine's.
    """

    def __init__(
        self,
        graphs: GraphStore,
        *,
        key_of: Callable[[Work], Hashable],
        max_batch_tokens: int,
        max_queued_tokens: int,
        max_wait_s: float,
        weights: Mapping[str, float],
        max_queued_by_tenant: Mapping[str, int] | None = None,
        clock: Callable[[], float],
    ) -> None:
        self._graphs = graphs
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._max_queued_by_tenant = {} if max_queued_by_tenant is None else max_queued_by_tenant
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._backlog = Backlog(weights, key_of)
        self._gathering: dict[Pass, list[BackwardWork]] = {}
        self._rhythm = Rhythm()
        self._retries = RetryLines()
        self._owed = WeakSet[Turn]()  # served, and not asked for their gradients yet; kept by conversations
        self._queued: Counter[str] = Counter()
        self._num_queued = 0
        self._changed = threading.Condition()
        self._closed = False
        self._pass_s = 0.0
        self._tokens_per_s = 0.0

    @property
    def num_queued_tokens(self) -> int:
        """Rows x positions that wait."""
        return self._num_queued

    def admit(self, work: Work) -> None:
        """Takes work in.

        A full queue refuses those who have their share of it; a tenant who has less still gets in, so that
        nobody is kept out by another's backlog. The first gradients of a turn that was served get in: what is
        kept for them would stay, and they would come back too late to share the backward pass.

        Raises:
            OverloadedError: too many tokens wait; says when there should be room.
        """
        speaker, num_tokens = work.turn.speaker, work.turn.num_tokens
        with self._changed:
            is_owed = isinstance(work, BackwardWork) and work.turn in self._owed
            if not is_owed:
                self._check_own_limit(speaker.tenant, num_tokens)
            queued = self._num_queued
            has_room = queued == 0 or queued + num_tokens <= self._max_queued_tokens
            gets_in = has_room or is_owed
            if self._closed or (not gets_in and self._has_its_share(speaker.tenant, num_tokens)):
                raise OverloadedError(
                    f"the teacher's queue: got {num_tokens} tokens more than {queued}, expected at most "
                    f"{self._max_queued_tokens}",
                    self._retry_after_s(speaker.tenant, queued, num_tokens),
                )
            if isinstance(work, BackwardWork):
                self._owed.discard(work.turn)
            self._queued[speaker.tenant] += num_tokens
            self._num_queued += num_tokens
            if not speaker.deterministic:  # nobody shares a pass with one who is, so none waits for it
                self._rhythm.came(speaker.conversation, work.admitted_s, speaker.tenant)
            graph = self._graphs.find(work.turn) if isinstance(work, BackwardWork) else None
            if isinstance(work, BackwardWork) and graph is not None:
                self._gathering.setdefault(graph, []).append(work)
            else:
                self._backlog.put(work)
            self._changed.notify()

    def next_batch(self) -> list[Work] | None:
        """Waits for work and returns what is to be computed together, or None once closed and empty."""
        with self._changed:
            while True:
                batch, wake_s = self._choose(self._clock())
                if batch:
                    self._uncount(batch)
                    return batch
                if self._closed and wake_s is None:
                    return None
                self._changed.wait(wake_s)

    def finished(self, batch: list[Work], seconds: float) -> None:
        """Learns what a batch took, and that its turns are answered."""
        with self._changed:
            now_s = self._clock()
            for work in batch:
                self._rhythm.answered(
                    work.turn.speaker.conversation, now_s, after_gradients=isinstance(work, BackwardWork)
                )
            num_tokens = sum(work.turn.num_tokens for work in batch if not work.future.cancelled())
            if num_tokens == 0:
                return
            rate = num_tokens / max(seconds, 1e-6)
            share = _SMOOTHING if self._tokens_per_s else 1.0
            self._pass_s += share * (seconds - self._pass_s)
            self._tokens_per_s += share * (rate - self._tokens_per_s)

    def gone(self, conversation: str) -> None:
        """Learns that a conversation is over."""
        with self._changed:
            self._rhythm.gone(conversation)

    def close(self) -> None:
        """Ends `next_batch` once everything admitted was returned."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _choose(self, now_s: float) -> tuple[list[Work], float | None]:
        """Returns what to compute, or nothing and how long to wait for more (None: until something comes)."""
        for graph in list(self._gathering):
            batch = self._ready_gradients(graph, now_s)
            if batch:
                return batch, None
        waits = []
        if len(self._backlog):
            wait_s = self._wait_for_turns_s(now_s)
            if wait_s <= 0:
                return self._take_turns(now_s), None
            waits.append(wait_s)
        is_late = False
        for graph in list(self._gathering):
            wait_s = self._wait_for_gradients_s(graph, now_s)
            if wait_s > 0:
                waits.append(wait_s)
                continue
            batch = self._settle(graph)
            if batch:
                return batch, None
            is_late = True
        if is_late:
            return self._take_turns(now_s), None
        return [], min(waits, default=None)

    def _ready_gradients(self, graph: Pass, now_s: float) -> list[Work]:
        """Returns the gradients that came for a pass if none is missing or they have waited long enough."""
        works = self._gathering[graph]
        awaited = self._graphs.awaited(graph)
        if awaited and len({work.turn for work in works}) >= len(awaited):
            return self._use(graph)
        first_s = min(work.admitted_s for work in works)
        if not awaited or now_s >= first_s + self._gradients_horizon_s:
            return self._settle(graph)
        return []

    def _settle(self, graph: Pass) -> list[Work]:
        """Uses a pass for the gradients that came, or leaves them to the backlog and returns nothing."""
        works = self._gathering[graph]
        wanted = sum(turn.num_tokens for turn in {work.turn for work in works})
        is_kept = bool(self._graphs.awaited(graph))
        if is_kept and wanted >= _WORTH_USING * sum(turn.num_tokens for turn in graph.turns):
            return self._use(graph)
        del self._gathering[graph]
        for work in works:
            self._graphs.release(work.turn)
            self._backlog.put(work)
        return []

    def _take_turns(self, now_s: float) -> list[Work]:
        away = self._rhythm.expected_tenants(now_s, self._max_wait_s)
        return self._backlog.take(self._max_batch_tokens, away)

    def _wait_for_turns_s(self, now_s: float) -> float:
        """Returns how long to wait for more turns before those that wait are computed."""
        is_full = self._backlog.num_tokens >= self._max_batch_tokens
        if self._closed or is_full or self._backlog.has_deterministic:
            return 0.0
        horizon_s = min(self._max_wait_s, self._pass_s / 2)
        oldest_s = self._backlog.oldest_s
        expected = self._rhythm.expected(now_s, horizon_s)
        # Once half of the conversations are there they go: while they are computed the others arrive.
        if len(self._backlog) >= len(expected):
            return 0.0
        return min(max(expected), oldest_s + horizon_s) - now_s

    def _wait_for_gradients_s(self, graph: Pass, now_s: float) -> float:
        """Returns how long to wait for the other gradients of a pass before those that came are served."""
        works = self._gathering[graph]
        if self._closed:
            return 0.0
        horizon_s = self._gradients_horizon_s
        missing = self._graphs.awaited(graph) - {work.turn for work in works}
        first_s = min(work.admitted_s for work in works)
        expected = self._rhythm.expected(now_s, horizon_s, {turn.speaker.conversation for turn in missing})
        return min(max(expected, default=now_s), first_s + horizon_s) - now_s

    @property
    def _gradients_horizon_s(self) -> float:
        """How long gradients wait at most: as long as a pass takes, since computing again costs more."""
        return min(self._max_wait_s, self._pass_s)

    def _use(self, graph: Pass) -> list[Work]:
        """Returns the gradients that came for a pass; a turn's second ones are left to the backlog."""
        batch: dict[Turn, Work] = {}
        for work in self._gathering.pop(graph):
            if work.turn in batch:
                self._backlog.put(work)
                continue
            batch[work.turn] = work
            tokens = num_charged_tokens(work, recomputed=False)
            self._backlog.counter.charge(work.turn.speaker.tenant, tokens)
        return list(batch.values())

    def _check_own_limit(self, tenant: str, num_tokens: int) -> None:
        own, limit = self._queued[tenant], self._max_queued_by_tenant.get(tenant)
        if limit is not None and own > 0 and own + num_tokens > limit:
            raise OverloadedError(
                f"the teacher's queue: got {num_tokens} tokens of {tenant} more than {own}, expected at most "
                f"{limit}",
                self._retry_after_s(tenant, own, num_tokens),
            )

    def _has_its_share(self, tenant: str, num_tokens: int) -> bool:
        """Whether a tenant would have more than its share of the queue by weight, with `num_tokens` more."""
        return self._queued[tenant] + num_tokens > self._max_queued_tokens * self._share_of(tenant)

    def _uncount(self, batch: list[Work]) -> None:
        for work in batch:
            if work.turn.wants_gradient and not isinstance(work, BackwardWork):
                self._owed.add(work.turn)
            tenant = work.turn.speaker.tenant
            self._queued[tenant] -= work.turn.num_tokens
            if not self._queued[tenant]:
                del self._queued[tenant]
            self._num_queued -= work.turn.num_tokens

    def _retry_after_s(self, tenant: str, queued: int, num_tokens: int) -> float:
        rate = self._tokens_per_s
        if not rate:
            return _SHORTEST_RETRY_S
        return self._retries.next_s(
            tenant, self._clock(), queued / rate, num_tokens / rate / self._share_of(tenant)
        )

    def _share_of(self, tenant: str) -> float:
        """Returns a tenant's share of service by weight, among those who wait."""
        weight = self._backlog.counter.weight
        return weight(tenant) / sum(weight(other) for other in {*self._queued, tenant})
