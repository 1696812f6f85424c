"""How many conversations should move: a new replica is of no use to those who stay where they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.teacher.directory import Report

__all__ = ["num_to_move"]


def num_to_move(num_staying: int, num_own: int, address: str, reports: Iterable[Report]) -> int:
    """Returns how many conversations a replica has more than its part of all.

    Args:
        num_staying: conversations here that have not been asked to move yet.
        num_own: all that are here.
        address: of this replica.
        reports: what is known of all replicas that take conversations.
    """
    others = [report.num_conversations for report in reports if report.address != address]
    if not others:
        return 0
    part = math.ceil((num_own + sum(others)) / (len(others) + 1))
    return max(num_staying - part, 0)
