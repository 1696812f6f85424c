"""How many bytes a replica keeps for its students, and whose they are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Account", "KeptBytes"]


class KeptBytes:
    """What is kept for all conversations of a replica, by tenant.

    Past the limit those who have more than an equal part of it keep as little as they can; the others lose
    nothing, so all together may come to twice the limit.

    Args:
        max_bytes: the limit.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._by_tenant: Counter[str] = Counter()

    @property
    def num_bytes(self) -> int:
        """Bytes kept now."""
        return self._by_tenant.total()

    def add(self, tenant: str, num_bytes: int) -> None:
        """Counts bytes that are kept for a tenant; negative ones are kept no more."""
        self._by_tenant[tenant] += num_bytes
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]

    def is_over(self, tenant: str) -> bool:
        """Whether a tenant has to keep as little as it can."""
        if self.num_bytes <= self.max_bytes:
            return False
        return self._by_tenant[tenant] * len(self._by_tenant) > self.max_bytes


class Account:
    """What is kept for one conversation.

    Args:
        kept: for all of them; None: nothing is limited.
        tenant: says whose it is, once something is kept.
    """

    def __init__(self, kept: KeptBytes | None = None, tenant: Callable[[], str] = str) -> None:
        self._kept = kept
        self._tenant = tenant

    def add(self, num_bytes: int) -> None:
        """Counts bytes that are kept, or, negative ones, no more."""
        if self._kept is not None and num_bytes:
            self._kept.add(self._tenant(), num_bytes)

    @property
    def is_over(self) -> bool:
        """Whether the conversation has to keep as little as it can."""
        return self._kept is not None and self._kept.is_over(self._tenant())
