"""The latest of something, a bounded number of them, in which nobody crowds out the others."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from preceptor.v1 import status_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Recent", "RecentRefusals"]

_MAX_REFUSALS = 100
_MAX_MESSAGE_CHARACTERS = 300

ItemT = TypeVar("ItemT")


class Recent(Generic[ItemT]):
    """Items by key; one too many drops the oldest one of the owner who has the most.

    Args:
        max_items: how many are kept.
    """

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._items: OrderedDict[Hashable, tuple[str, ItemT]] = OrderedDict()

    def get(self, key: Hashable) -> ItemT | None:
        """Returns an item, which becomes the newest."""
        found = self._items.get(key)
        if found is None:
            return None
        self._items.move_to_end(key)
        return found[1]

    def put(self, key: Hashable, owner: str, item: ItemT) -> None:
        """Takes an item in, as the newest."""
        self._items[key] = (owner, item)
        if len(self._items) > self._max_items:
            ((most, _),) = Counter(owner for owner, _ in self._items.values()).most_common(1)
            del self._items[next(key for key, (owner, _) in self._items.items() if owner == most)]

    def newest_first(self) -> list[ItemT]:
        """Returns what is kept."""
        return [item for _, item in reversed(list(self._items.values()))]


class RecentRefusals:
    """What was refused or failed lately; alike ones of a conversation, or of a host, are counted together."""

    def __init__(self) -> None:
        self._recent: Recent[pb.Refusal] = Recent(_MAX_REFUSALS)

    def add(self, refusal: pb.Refusal) -> None:
        """Takes in one, whose `count` is 1, or counts it."""
        where = refusal.conversation or refusal.peer.rpartition(":")[0]  # who comes again has another port
        key = (refusal.tenant, where, refusal.reason)
        if len(refusal.message) > _MAX_MESSAGE_CHARACTERS:
            refusal.message = f"{refusal.message[:_MAX_MESSAGE_CHARACTERS]} ..."
        known = self._recent.get(key)
        if known is None:
            self._recent.put(key, refusal.tenant, refusal)
        else:
            refusal.count += known.count
            known.CopyFrom(refusal)

    def newest_first(self) -> list[pb.Refusal]:
        """Returns copies of what is kept."""
        return [_copy(refusal) for refusal in self._recent.newest_first()]


def _copy(refusal: pb.Refusal) -> pb.Refusal:
    copy = pb.Refusal()
    copy.CopyFrom(refusal)
    return copy
