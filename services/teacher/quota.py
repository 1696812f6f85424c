"""Tokens a second by tenant: a bucket that fills at the tenant's rate, up to some seconds' worth."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from services.teacher.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.teacher.tally import Tally

__all__ = ["Quotas", "paid"]

_BURST_S = 10.0


class Quotas:
    """What tenants may still ask for, at this replica.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # what is in it, and when

    def charge(self, tenant: str, num_tokens: int, tokens_per_s: float) -> None:
        """Takes tokens out of a tenant's bucket; a full one covers a turn of any size.

        Args:
            tenant: whose.
            num_tokens: rows x positions of a turn; negative: given back.
            tokens_per_s: what the bucket fills with.

        Raises:
            OverloadedError: there is not enough in it; says when there is.
        """
        now_s = self._clock()
        burst = tokens_per_s * _BURST_S
        left, then_s = self._buckets.get(tenant, (burst, now_s))
        left = min(burst, left + (now_s - then_s) * tokens_per_s)
        missing = min(num_tokens, burst) - left
        if missing > 0:
            self._buckets[tenant] = (left, now_s)
            raise OverloadedError(
                f"tokens of {tenant}: got {num_tokens} more, expected at most {tokens_per_s:g} a second",
                missing / tokens_per_s,
            )
        self._buckets[tenant] = (left - num_tokens, now_s)


@contextlib.contextmanager
def paid(num_tokens: int, charge: Callable[[int], None], tally: Tally) -> Iterator[None]:
    """Has a turn paid for, unless what is done while open finds no room for it.

    Args:
        num_tokens: its rows x positions; 0: it costs nothing.
        charge: takes them, or, negated, gives them back; may refuse.
        tally: of what was asked for.
    """
    if num_tokens:
        charge(num_tokens)
    try:
        yield
    except OverloadedError:
        if num_tokens:
            charge(-num_tokens)
        raise
    tally.tokens += num_tokens
