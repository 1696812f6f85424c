"""The turns a conversation keeps, so that gradients can follow and repetitions are recognised."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.teacher.codecs import num_bytes_of
from services.teacher.kept import Account

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from preceptor.codec import TeacherCodec
    from services.teacher.work import Turn

__all__ = ["KeptTurn", "TurnShelf"]


@dataclass(eq=False)
class KeptTurn:
    """A turn and what it looked like on the wire.

    Attributes:
        turn: checked and ready to be computed (again).
        digest: SHA-256 of its frame.
        num_bytes: size of its frame.
        shapes: of its outputs by name, once it is answered.
        had_gradients: whether gradients were asked for.
    """

    turn: Turn
    digest: bytes
    num_bytes: int
    shapes: dict[str, torch.Size] | None = field(default=None)
    had_gradients: bool = False


class TurnShelf:
    """Turns by number, the oldest dropped beyond a count or a number of bytes.

    Dropping is safe: a student whose turn is gone sends it again. A turn counts with its tensors, and a codec
    version that kept turns hold counts once.

    Args:
        max_turns: how many are kept.
        max_bytes: how many bytes are kept; at least one turn always is.
        drop: told of each turn that goes, so that its graph can go too.
        account: counts the bytes with those of others; None: nobody does.
    """

    def __init__(
        self,
        max_turns: int,
        max_bytes: int,
        drop: Callable[[Turn], object],
        account: Account | None = None,
    ) -> None:
        self._account = account or Account()
        self._max_turns = max_turns
        self._max_bytes = max_bytes
        self._drop = drop
        self._turns: OrderedDict[int, KeptTurn] = OrderedDict()
        self._codecs: Counter[TeacherCodec] = Counter()
        self._num_bytes = 0

    def put(self, number: int, kept: KeptTurn) -> None:
        """Keeps a turn as the newest."""
        known = self._turns.pop(number, None)
        if known is not None:
            self._uncount(known.turn)
        self._turns[number] = kept
        self._count(kept.turn)
        while len(self._turns) > self._max_turns or (self._is_full and len(self._turns) > 1):
            _, oldest = self._turns.popitem(last=False)
            self._uncount(oldest.turn)
            self._drop(oldest.turn)

    @property
    def _is_full(self) -> bool:
        return self._num_bytes > self._max_bytes or self._account.is_over

    def find(self, number: int) -> KeptTurn | None:
        """Returns a turn, or None if it is not kept."""
        return self._turns.get(number)

    def clear(self) -> None:
        """Drops every turn."""
        while self._turns:
            self._drop(self._turns.popitem()[1].turn)
        self._codecs.clear()
        self._add(-self._num_bytes)

    @property
    def num_bytes(self) -> int:
        """Bytes kept now."""
        return self._num_bytes

    def _count(self, turn: Turn) -> None:
        self._add(turn.held_bytes)
        if turn.codec is not None:
            self._codecs[turn.codec] += 1
            if self._codecs[turn.codec] == 1:
                self._add(num_bytes_of(turn.codec))

    def _uncount(self, turn: Turn) -> None:
        self._add(-turn.held_bytes)
        if turn.codec is not None:
            self._codecs[turn.codec] -= 1
            if self._codecs[turn.codec] == 0:
                del self._codecs[turn.codec]
                self._add(-num_bytes_of(turn.codec))

    def _add(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._account.add(num_bytes)
