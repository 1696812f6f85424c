"""Keeps the autograd graphs of turns whose gradients may still come, under a byte budget.

The least recently stored graph goes first. Dropping one is always safe: the engine computes it again.
Used by the compute thread and by the event loop, hence the lock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from services.teacher.work import Graph, Turn

from contextlib import contextmanager

__all__ = ["GraphStore", "counted_graph_bytes"]


class GraphStore:
    """Graphs by turn, at most `max_bytes` of them."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._graphs: OrderedDict[Turn, Graph] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def put(self, turn: Turn, graph: Graph) -> None:
        """Keeps a graph, dropping older ones that no longer fit; one that never fits is not kept."""
        with self._lock:
            self._remove(turn)
            if graph.num_bytes > self._max_bytes:
                return
            while self._num_bytes + graph.num_bytes > self._max_bytes:
                self._remove(next(iter(self._graphs)))
            self._graphs[turn] = graph
            self._num_bytes += graph.num_bytes

    def take(self, turn: Turn) -> Graph | None:
        """Removes and returns a turn's graph, or None if it was dropped."""
        with self._lock:
            return self._remove(turn)

    def _remove(self, turn: Turn) -> Graph | None:
        graph = self._graphs.pop(turn, None)
        if graph is not None:
            self._num_bytes -= graph.num_bytes
        return graph

    @property
    def num_bytes(self) -> int:
        """Bytes kept now."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._graphs)


@contextmanager
def counted_graph_bytes(excluded: frozenset[int]) -> Iterator[list[int]]:
    """Counts the bytes that autograd saves while the context is open, each storage once.

    Args:
        excluded: data pointers of storages that are there anyway (the teacher's parameters).

    Yields:
        A list of one number, the bytes so far.
    """
    seen = set(excluded)
    total = [0]

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
        yield total
