"""When conversations are expected back: how an idle teacher knows whether waiting is worth it.

A student's step is a rhythm: it gets its reply, thinks, sends gradients, gets theirs, thinks, sends the next
message. The pauses are remembered per conversation, and one that is away is expected back after about as long
as the last times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Rhythm"]

_SMOOTHING = 0.3
_LATENESS = 1.5  # a pause may be this much longer than usual
_GRACE_S = 0.001


@dataclass
class _Visitor:
    """One conversation: whose it is, and its usual pauses after replies and after gradients, in seconds."""

    tenant: str
    pauses_s: dict[bool, float] = field(default_factory=dict)
    num_inside: int = 0
    left_s: float = 0.0
    after_gradients: bool = False


class Rhythm:
    """The pauses of all conversations."""

    def __init__(self) -> None:
        self._visitors: dict[str, _Visitor] = {}

    def came(self, conversation: str, now_s: float, tenant: str = "") -> None:
        """Notes that a turn of a conversation came."""
        visitor = self._visitors.setdefault(conversation, _Visitor(tenant))
        if visitor.num_inside == 0 and visitor.left_s:
            pause_s = now_s - visitor.left_s
            usual_s = visitor.pauses_s.get(visitor.after_gradients, pause_s)
            visitor.pauses_s[visitor.after_gradients] = usual_s + _SMOOTHING * (pause_s - usual_s)
        visitor.num_inside += 1

    def answered(self, conversation: str, now_s: float, *, after_gradients: bool) -> None:
        """Notes that a turn of a conversation was answered, with gradients or with something else."""
        visitor = self._visitors.get(conversation)
        if visitor is None:
            return
        visitor.num_inside = max(visitor.num_inside - 1, 0)
        visitor.left_s, visitor.after_gradients = now_s, after_gradients

    def gone(self, conversation: str) -> None:
        """Forgets a conversation."""
        self._visitors.pop(conversation, None)

    def expected(self, now_s: float, horizon_s: float, among: Collection[str] | None = None) -> list[float]:
        """Returns by when each conversation that is away should be back, those within a horizon.

        Args:
            now_s: the time.
            horizon_s: how long to look ahead, in seconds.
            among: which conversations; one whose pauses are not known is then given the whole horizon. None:
                all whose pauses are known.
        """
        names = self._visitors if among is None else among
        backs = (self._back_s(name, now_s, horizon_s, must_be_known=among is None) for name in names)
        return [back_s for back_s in backs if back_s is not None]

    def expected_tenants(self, now_s: float, horizon_s: float) -> set[str]:
        """Returns the tenants of conversations that should be back within a horizon."""
        return {
            visitor.tenant
            for name, visitor in self._visitors.items()
            if self._back_s(name, now_s, horizon_s, must_be_known=True) is not None
        }

    def _back_s(self, name: str, now_s: float, horizon_s: float, *, must_be_known: bool) -> float | None:
        visitor = self._visitors.get(name)
        if visitor is None or visitor.num_inside:
            return None
        pause_s = visitor.pauses_s.get(visitor.after_gradients)
        if pause_s is None and must_be_known:
            return None
        wait_s = horizon_s if pause_s is None else pause_s * _LATENESS + _GRACE_S
        back_s = visitor.left_s + wait_s
        return back_s if now_s < back_s <= now_s + horizon_s else None
