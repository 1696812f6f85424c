"""When those come back who were refused: one after another, as fast as the teacher can serve them."""

from __future__ import annotations

__all__ = ["RetryLines"]

_SHORTEST_S = 0.05
_LONGEST_S = 30.0
_MAX_TENANTS = 4096


class RetryLines:
    """Times that were given to refused turns, by tenant.

    Were all of them told when the queue has room, they would come at once, and all but the first in vain.
    """

    def __init__(self) -> None:
        self._next_s: dict[str, float] = {}

    def next_s(self, tenant: str, now_s: float, queued_s: float, own_s: float) -> float:
        """Returns in how many seconds a refused turn should come back.

        Args:
            tenant: whose it is.
            now_s: the time.
            queued_s: how long what waits will take.
            own_s: how long the tenant's share of the teacher needs for the turn.
        """
        if len(self._next_s) > _MAX_TENANTS:
            self._next_s = {name: at_s for name, at_s in self._next_s.items() if at_s > now_s}
        first_s = now_s + queued_s / 2
        at_s = min(max(self._next_s.get(tenant, 0.0), first_s), now_s + _LONGEST_S)
        self._next_s[tenant] = at_s + own_s
        return min(max(at_s - now_s, _SHORTEST_S), _LONGEST_S)
