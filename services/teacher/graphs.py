"""Keeps the passes whose gradients may still come, with their autograd graphs, under a byte budget.

The oldest pass goes first. Dropping one is always safe: the engine computes it again. Used by the compute
thread and by the event loop, hence the lock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from services.teacher.passes import Pass
    from services.teacher.work import Turn

__all__ = ["GraphMeter", "GraphStore"]

_MAX_SIGNATURES = 4096


class GraphStore:
    """Passes by turn, at most `max_bytes` of graphs."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._awaited: OrderedDict[Pass, set[Turn]] = OrderedDict()
        self._passes: dict[Turn, Pass] = {}
        self._num_bytes = 0
        self._lock = threading.Lock()

    def put(self, graph: Pass) -> None:
        """Keeps a pass, dropping older ones that no longer fit; one that never fits is not kept."""
        with self._lock:
            for turn in graph.turns:
                self._release(turn)  # computed anew, for a turn that was repeated
            if graph.num_bytes > self.max_bytes:
                return
            while self._num_bytes + graph.num_bytes > self.max_bytes:
                self._remove(next(iter(self._awaited)))
            self._awaited[graph] = set(graph.turns)
            self._passes.update(dict.fromkeys(graph.turns, graph))
            self._num_bytes += graph.num_bytes

    def find(self, turn: Turn) -> Pass | None:
        """Returns the pass of a turn whose gradients may still come, or None if it was dropped."""
        return self._passes.get(turn)

    def awaited(self, graph: Pass) -> frozenset[Turn]:
        """Returns the turns of a pass whose gradients may still come; none if it was dropped."""
        with self._lock:
            return frozenset(self._awaited.get(graph, ()))

    def release(self, turn: Turn) -> None:
        """Notes that a turn's graph is not needed any more; the last one of a pass drops it."""
        with self._lock:
            self._release(turn)

    def remove(self, graph: Pass) -> None:
        """Drops a pass."""
        with self._lock:
            self._remove(graph)

    def _release(self, turn: Turn) -> None:
        graph = self._passes.pop(turn, None)
        if graph is None:
            return
        awaited = self._awaited[graph]
        awaited.discard(turn)
        if not awaited:
            self._remove(graph)

    def _remove(self, graph: Pass) -> None:
        awaited = self._awaited.pop(graph, None)
        if awaited is None:
            return
        for turn in awaited:
            del self._passes[turn]
        self._num_bytes -= graph.num_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes kept now."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._awaited)


class GraphMeter:
    """Tells how many bytes a graph keeps alive.

    It looks at what autograd saves, each storage once; since that costs a call into Python for every saved
    tensor, now and in the backward pass, it looks once for each shape of pass and remembers.

    Args:
        excluded: data pointers of storages that are there anyway (the teacher's parameters).
    """

    def __init__(self, excluded: frozenset[int] = frozenset()) -> None:
        self._excluded = excluded
        self._known: OrderedDict[object, int] = OrderedDict()

    @contextmanager
    def measured(self, signature: object) -> Iterator[list[int]]:
        """Has the bytes of the graph that is made while open, in a list of one number, once it is closed."""
        known = self._known.get(signature)
        if known is not None:
            yield [known]
            return
        total = [0]
        with _counted(self._excluded, total):
            yield total
        self._known[signature] = total[0]
        while len(self._known) > _MAX_SIGNATURES:
            self._known.popitem(last=False)


@contextmanager
def _counted(excluded: frozenset[int], total: list[int]) -> Iterator[None]:
    seen = set(excluded)

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total[0] += storage.nbytes()
        # Not the tensor itself: an output that its own node saves would keep its graph alive for good.
        return tensor.detach()

    def same(tensor: Any) -> Any:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, same):
        yield
