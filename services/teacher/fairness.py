"""Fair shares of service between tenants: the virtual token counter.

"Fairness in Serving Large Language Models" (arXiv 2401.00588), algorithm 2: every tenant has a counter of the
tokens it was served, divided by its weight, and the one with the smallest is served next. A tenant that comes
back after a pause is lifted to the smallest counter among those that wait, so that idling saves nothing up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["VirtualTokenCounter"]

_MAX_IDLE_TENANTS = 4096


class VirtualTokenCounter:
    """Counters by tenant.

    Args:
        weights: by tenant; 1 for those not named.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._counters: dict[str, float] = {}
        self._last_served = 0.0

    def lift(self, tenant: str, waiting: Iterable[str]) -> None:
        """Takes in a tenant that had nothing waiting.

        Args:
            tenant: who comes.
            waiting: the tenants that wait already.
        """
        floor = min((self._counters[other] for other in waiting), default=self._last_served)
        self._counters[tenant] = max(self._counters.get(tenant, floor), floor)
        if len(self._counters) > _MAX_IDLE_TENANTS:
            self._forget({tenant, *waiting})

    def charge(self, tenant: str, num_tokens: float) -> None:
        """Counts tokens that a tenant is served."""
        served = self._counters.get(tenant, self._last_served)
        self._last_served = max(self._last_served, served)
        self._counters[tenant] = served + num_tokens / self._weights.get(tenant, 1.0)

    def weight(self, tenant: str) -> float:
        """Returns a tenant's weight."""
        return self._weights.get(tenant, 1.0)

    def __getitem__(self, tenant: str) -> float:
        return self._counters[tenant]

    def _forget(self, waiting: set[str]) -> None:
        """Drops the counters of the least served who don't wait: most would be lifted past them anyway."""
        idle = sorted(self._counters.keys() - waiting, key=self._counters.__getitem__)
        for tenant in idle[: max(len(idle) - _MAX_IDLE_TENANTS // 2, 0)]:
            del self._counters[tenant]
