"""The engine: admits work, forms batches of it and computes them on one thread.

    admit (any thread) -> WorkQueue -> next_batch (compute thread) -> results through futures

The queue decides the order and what is computed together; the engine computes. It imports neither ray nor
grpc and trusts its callers to have checked what they submit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from services.teacher.errors import OverloadedError
from services.teacher.graphs import GraphStore, counted_graph_bytes
from services.teacher.work import ForwardResult, GradientsResult, Graph, Turn, compute_gradients

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from services.teacher.families.base import Teacher

__all__ = ["BackwardWork", "Engine", "FifoQueue", "ForwardWork", "Work", "WorkQueue"]


@dataclass(eq=False)
class ForwardWork:
    """A turn whose outputs are wanted."""

    turn: Turn
    admitted_s: float
    future: Future[ForwardResult] = field(default_factory=Future)


@dataclass(eq=False)
class BackwardWork:
    """A turn whose gradients are wanted, with the gradients of its outputs by name."""

    turn: Turn
    grad_values: Mapping[str, Tensor]
    admitted_s: float
    future: Future[GradientsResult] = field(default_factory=Future)


Work = ForwardWork | BackwardWork


class WorkQueue(Protocol):
    """Holds admitted work and decides what is computed next."""

    def admit(self, work: Work) -> None:
        """Takes work in.

        Raises:
            OverloadedError: there is no room.
        """
        ...

    def next_batch(self) -> list[Work] | None:
        """Waits for work and returns what is to be computed together, or None once closed and empty."""
        ...

    def close(self) -> None:
        """Ends `next_batch` once everything admitted was returned."""
        ...


class FifoQueue:
    """First come, first served, one piece of work at a time."""

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._queue: deque[Work] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def admit(self, work: Work) -> None:
        """Appends work; raises OverloadedError when `max_queued` pieces wait."""
        with self._changed:
            if len(self._queue) >= self._max_queued or self._closed:
                raise OverloadedError(
                    f"the teacher's queue: got one more turn, expected at most {self._max_queued}", 0.1
                )
            self._queue.append(work)
            self._changed.notify()

    def next_batch(self) -> list[Work] | None:
        """Waits for the oldest piece of work."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return [self._queue.popleft()] if self._queue else None

    def close(self) -> None:
        """Lets `next_batch` return None once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Engine:
    """Computes turns of one frozen teacher on one thread."""

    def __init__(
        self,
        teacher: Teacher,
        *,
        queue: WorkQueue,
        max_retained_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.teacher = teacher
        self.graphs = GraphStore(max_retained_bytes)
        self._queue = queue
        self._clock = clock
        self._thread = threading.Thread(target=self._run, name="teacher-compute", daemon=True)
        self._teacher_storages = frozenset[int]()

    def start(self) -> None:
        """Starts the compute thread."""
        self._teacher_storages = frozenset(
            parameter.untyped_storage().data_ptr() for parameter in self.teacher.parameters()
        )
        self._thread.start()

    def stop(self) -> None:
        """Computes what was admitted, then ends the compute thread."""
        self._queue.close()
        if self._thread.ident is not None:
            self._thread.join()

    def forward(self, turn: Turn) -> Future[ForwardResult]:
        """Admits a forward pass.

        Raises:
            OverloadedError: the queue is full.
        """
        work = ForwardWork(turn, self._clock())
        self._queue.admit(work)
        return work.future

    def backward(self, turn: Turn, grad_values: Mapping[str, Tensor]) -> Future[GradientsResult]:
        """Admits a backward pass of a turn that wants gradients.

        Raises:
            OverloadedError: the queue is full.
        """
        work = BackwardWork(turn, grad_values, self._clock())
        self._queue.admit(work)
        return work.future

    def _run(self) -> None:
        # OpenMP counts its threads per thread, and a new thread learns what `torch.set_num_threads` was told
        # only when torch asks, which small operations never do: they would run on all cores.
        torch.get_num_threads()
        while (batch := self._queue.next_batch()) is not None:
            for work in batch:
                if not work.future.set_running_or_notify_cancel():
                    continue
                try:
                    if isinstance(work, ForwardWork):
                        work.future.set_result(self._forward(work))
                    else:
                        work.future.set_result(self._backward(work))
                except Exception as error:  # noqa: BLE001 - handed to whoever waits; the thread must go on
                    work.future.set_exception(error)

    def _forward(self, work: ForwardWork) -> ForwardResult:
        start = self._clock()
        graph = self._compute(work.turn)
        values = {name: value.detach().cpu() for name, value in graph.values.items()}
        if work.turn.wants_gradient:
            self.graphs.put(work.turn, graph)
        return ForwardResult(values, _ms(start - work.admitted_s), _ms(self._clock() - start))

    def _backward(self, work: BackwardWork) -> GradientsResult:
        start = self._clock()
        graph = self.graphs.take(work.turn)
        retained = graph is not None
        if graph is None:
            graph = self._compute(work.turn)
        grad_message, grad_codec = compute_gradients(graph, work.grad_values)
        return GradientsResult(
            None if grad_message is None else grad_message.cpu(),
            {name: gradient.cpu() for name, gradient in grad_codec.items()},
            retained,
            _ms(start - work.admitted_s),
            _ms(self._clock() - start),
        )

    def _compute(self, turn: Turn) -> Graph:
        if not turn.wants_gradient:
            return turn.forward(self.teacher)
        with counted_graph_bytes(self._teacher_storages) as num_bytes:
            graph = turn.forward(self.teacher)
        graph.num_bytes = num_bytes[0]
        return graph


def _ms(seconds: float) -> float:
    return seconds * 1000.0
