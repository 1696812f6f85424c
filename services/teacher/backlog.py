"""The work that waits for a pass, by tenant: who is next, and who can be computed with them."""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import TYPE_CHECKING

from services.teacher.fairness import VirtualTokenCounter
from services.teacher.work import BackwardWork

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterator, Mapping

    from services.teacher.work import Work

__all__ = ["Backlog", "num_charged_tokens"]

# A backward pass through frozen layers costs about as much as two forward passes: the layers' own gradients
# are not needed, but attention's backward pass and what it reads again make up for that.
_BACKWARD_COST = 2.0


def num_charged_tokens(work: Work, *, recomputed: bool) -> float:
    """Returns what a piece of work counts for in its tenant's share, in tokens of a forward pass."""
    if not isinstance(work, BackwardWork):
        return float(work.turn.num_tokens)
    return work.turn.num_tokens * (_BACKWARD_COST + recomputed)


class Backlog:
    """Work by tenant, first come first served within a tenant.

    Args:
        weights: shares of service by tenant; 1 for those not named.
        key_of: what pieces of work must have in common to be computed together.
    """

    def __init__(self, weights: Mapping[str, float], key_of: Callable[[Work], Hashable]) -> None:
        self.counter = VirtualTokenCounter(weights)
        self._key_of = key_of
        self._waiting: dict[str, deque[tuple[Hashable, Work]]] = {}
        self.num_tokens = 0
        self._num_pieces = 0

    def __len__(self) -> int:
        return self._num_pieces

    def __iter__(self) -> Iterator[Work]:
        return (work for queue in self._waiting.values() for _, work in queue)

    def put(self, work: Work) -> None:
        """Appends a piece of work."""
        tenant = work.turn.speaker.tenant
        if tenant not in self._waiting:
            self.counter.lift(tenant, self._waiting)
            self._waiting[tenant] = deque()
        self._waiting[tenant].append((self._key_of(work), work))
        self.num_tokens += work.turn.num_tokens
        self._num_pieces += 1

    def take(self, max_tokens: int, active: Collection[str]) -> list[Work]:
        """Takes out what is computed next: the head of the least served tenant, and what fits it.

        Args:
            max_tokens: rows x positions of all of it; the first piece is taken whatever its size.
            active: tenants who don't wait now but will soon; while there are several, with those who wait,
                none takes more than its share of the tokens by weight, so that one tenant's queue can't
                make a pass long for the others.
        """
        heap = [(self.counter[tenant], tenant) for tenant in self._waiting]
        heapq.heapify(heap)
        key, _ = self._waiting[heap[0][1]][0]
        unit = max_tokens / sum(self.counter.weight(tenant) for tenant in {*active, *self._waiting})
        batch: list[Work] = []
        room, taken = float(max_tokens), dict.fromkeys(self._waiting, 0)
        while heap and room > 0:
            _, tenant = heapq.heappop(heap)
            work = self._take_fitting(tenant, key, math.inf if not batch else room)
            if work is None:
                continue
            batch.append(work)
            room -= work.turn.num_tokens
            taken[tenant] += work.turn.num_tokens
            recomputed = isinstance(work, BackwardWork)
            self.counter.charge(tenant, num_charged_tokens(work, recomputed=recomputed))
            if tenant in self._waiting and taken[tenant] < unit * self.counter.weight(tenant):
                heapq.heappush(heap, (self.counter[tenant], tenant))
        return batch

    def _take_fitting(self, tenant: str, key: Hashable, room: float) -> Work | None:
        """Takes a tenant's first piece that fits; no turn overtakes another of its conversation."""
        queue = self._waiting[tenant]
        passed: set[str] = set()
        for index, (own_key, work) in enumerate(queue):
            conversation = work.turn.speaker.conversation
            if conversation in passed:
                continue
            if own_key == key and work.turn.num_tokens <= room:
                del queue[index]
                if not queue:
                    del self._waiting[tenant]
                self.num_tokens -= work.turn.num_tokens
                self._num_pieces -= 1
                return work
            passed.add(conversation)
        return None

    @property
    def has_deterministic(self) -> bool:
        """Whether a tenant's first piece is one that shares a pass with nobody."""
        return any(queue[0][1].turn.speaker.deterministic for queue in self._waiting.values())

    @property
    def oldest_s(self) -> float:
        """When the longest waiting of the tenants' first pieces was admitted; there must be one."""
        return min(queue[0][1].admitted_s for queue in self._waiting.values())
