"""The engine: admits work, forms batches of it and computes them on one thread.

    admit (any thread) -> WorkQueue -> next_batch (compute thread) -> results through futures

The queue decides the order and what is computed together; the engine computes, each batch in one pass of the
teacher. It imports neither ray nor grpc and trusts its callers to have checked what they submit.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from services.teacher.load import LoadMeter
from services.teacher.signals import Signals
from services.teacher.work import (
    BackwardWork,
    Cost,
    ForwardResult,
    ForwardWork,
    GradientsResult,
    Turn,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from torch import Tensor

    from services.teacher.graphs import GraphStore
    from services.teacher.load import Load
    from services.teacher.passes import Gradients, Pass
    from services.teacher.teaching import Teaching

__all__ = ["Engine", "WorkQueue"]


_MESSAGE = ""  # no parameter of a codec has an empty name


class WorkQueue(Protocol):
    """Holds admitted work and decides what is computed next."""

    @property
    def num_queued_tokens(self) -> int:
        """Rows x positions that wait."""
        ...

    def admit(self, work: Work) -> None:
        """Takes work in.

        Raises:
            OverloadedError: there is no room.
        """
        ...

    def next_batch(self) -> list[Work] | None:
        """Waits for work and returns what is to be computed together, or None once closed and empty."""
        ...

    def finished(self, batch: list[Work], seconds: float) -> None:
        """Learns what a batch took, and that its turns are answered."""
        ...

    def gone(self, conversation: str) -> None:
        """Learns that a conversation is over."""
        ...

    def close(self) -> None:
        """Ends `next_batch` once everything admitted was returned."""
        ...


class Engine:
    """Computes turns of one frozen teacher on one thread.

    Args:
        teaching: computes batches; has the frozen teacher.
        queue: decides what is computed together.
        graphs: keeps passes for their gradients; a `FairQueue` uses the same.
        clock: seconds, monotonic.
        signals: count what is computed; None: its own.

    Attributes:
        signals: what counts for this replica.
    """

    def __init__(
        self,
        teaching: Teaching,
        *,
        queue: WorkQueue,
        graphs: GraphStore,
        clock: Callable[[], float] = time.perf_counter,
        signals: Signals | None = None,
    ) -> None:
        self.teacher = teaching.teacher
        self.graphs = graphs
        self.cache = teaching.cache
        self._teaching = teaching
        self._transfers = teaching.transfers
        self._queue = queue
        self._clock = clock
        self._meter = LoadMeter(clock)
        self.signals = Signals() if signals is None else signals
        self._thread = threading.Thread(target=self._run, name="teacher-compute", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether what is admitted will be computed and delivered."""
        return self._thread.is_alive() and self._transfers.is_alive

    @property
    def queued_tokens(self) -> int:
        """Rows x positions that wait to be computed."""
        return self._queue.num_queued_tokens

    def load(self) -> Load:
        """Returns how busy it is."""
        return self._meter.load(self.queued_tokens, self.graphs.num_bytes)

    def start(self) -> None:
        """Starts the compute thread."""
        self._transfers.start()
        self._thread.start()

    def stop(self) -> None:
        """Computes what was admitted, then ends the compute thread and closes the cache."""
        self._queue.close()
        if self._thread.ident is not None:
            self._thread.join()
            self._transfers.stop()
        if self.cache is not None:
            self.cache.close()
        if self.signals.spans is not None:
            self.signals.spans.close()

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
        work = BackwardWork(turn, self._clock(), grad_values)
        self._queue.admit(work)
        return work.future

    def forget(self, turn: Turn) -> None:
        """Learns that no gradients of a turn will come."""
        self.graphs.release(turn)

    def gone(self, conversation: str) -> None:
        """Learns that a conversation is over."""
        self._queue.gone(conversation)

    def _run(self) -> None:
        # OpenMP counts its threads per thread, and a new thread learns what `torch.set_num_threads` was told
        # only when torch asks, which small operations never do: they would run on all cores.
        torch.get_num_threads()
        while (batch := self._queue.next_batch()) is not None:
            works = [work for work in batch if work.future.set_running_or_notify_cancel()]
            start = self._clock()
            self._meter.started()
            self._compute(works)
            # On CUDA it is finished once its results, which are on their way, have arrived.
            finish = partial(self._finish, batch, start)
            self._transfers.deliver([], finish, finish)

    def _finish(self, batch: list[Work], start: float, _: object) -> None:
        seconds = self._clock() - start
        self._meter.computed(
            seconds, sum(work.turn.num_tokens for work in batch if not work.future.cancelled())
        )
        self._queue.finished(batch, seconds)

    def _compute(self, works: Sequence[Work]) -> None:
        """Computes a batch; if that fails, each piece by itself, so that a failing one fails alone."""
        forwards = [work for work in works if isinstance(work, ForwardWork)]
        backwards = [work for work in works if isinstance(work, BackwardWork)]
        on_their_way: set[Work] = set()  # computed; on CUDA their futures are set a little later
        try:
            if forwards:
                self._forward(forwards)
                on_their_way.update(forwards)
            while backwards:
                # A turn may come twice, with other gradients; each needs a graph of its own.
                once = {work.turn: work for work in reversed(backwards)}
                self._backward(list(once.values()))
                on_their_way.update(once.values())
                backwards = [work for work in backwards if work is not once[work.turn]]
        except Exception as error:  # noqa: BLE001 - handed to whoever waits; the thread must go on
            rest = [work for work in works if work not in on_their_way]
            if len(works) == 1:
                _fail(rest, error)
            else:
                for work in rest:
                    self._compute([work])

    def _forward(self, works: Sequence[ForwardWork]) -> None:
        start = self._clock()
        keeps_graph = self.graphs.max_bytes > 0 and works[0].turn.wants_gradient
        passes, num_cached_rows = self._teaching.forward(
            [work.turn for work in works], with_graph=keeps_graph
        )
        if keeps_graph:
            for each in passes:
                self.graphs.put(each)
        pass_of = {turn: each for each in passes for turn in each.turns}
        values = [pass_of[work.turn].values(work.turn) for work in works]

        def answer(arrived: Sequence[dict[str, Tensor]]) -> None:
            costs = self._costs(works, start, num_cached_rows)
            for work, own, cost in zip(works, arrived, costs, strict=True):
                work.future.set_result(ForwardResult(own, cost))

        self._transfers.deliver(
            [{name: value.detach() for name, value in own.items()} for own in values],
            answer,
            partial(_fail, works),
        )

    def _backward(self, works: Sequence[BackwardWork]) -> None:
        start = self._clock()
        graph = self.graphs.find(works[0].turn)
        is_retained = graph is not None and {work.turn for work in works} <= set(graph.turns)
        num_cached_rows: Mapping[Turn, int] = {}
        passes: Sequence[Pass] = [graph] if graph is not None and is_retained else []
        if not passes:
            for work in works:
                self.graphs.release(work.turn)
            passes, num_cached_rows = self._teaching.forward([work.turn for work in works], with_graph=True)
        gradients: dict[Turn, Gradients] = {}
        for each in passes:
            self.graphs.remove(each)
            own = {work.turn: work.grad_values for work in works if work.turn in each.turns}
            gradients.update(each.backward(own))
        found = [gradients[work.turn] for work in works]

        def answer(arrived: Sequence[dict[str, Tensor]]) -> None:
            costs = self._costs(works, start, num_cached_rows)
            self.signals.passes.went_back(is_retained=is_retained)
            for work, codec, cost in zip(works, arrived, costs, strict=True):
                message = codec.pop(_MESSAGE, None)
                work.future.set_result(GradientsResult(message, codec, is_retained, cost))

        self._transfers.deliver(
            [own.codec if own.message is None else {**own.codec, _MESSAGE: own.message} for own in found],
            answer,
            partial(_fail, works),
        )

    def _costs(self, works: Sequence[Work], start: float, num_cached_rows: Mapping[Turn, int]) -> list[Cost]:
        compute_ms = (self._clock() - start) * 1000.0
        speakers = [work.turn.speaker for work in works]
        num_conversations = len({speaker.conversation for speaker in speakers})
        num_tenants = len({speaker.tenant for speaker in speakers})
        num_read = sum(turn.num_rows - num_cached for turn, num_cached in num_cached_rows.items())
        self.signals.passes.computed(len(works), num_tenants, sum(num_cached_rows.values()), num_read)
        ms_a_token = compute_ms / sum(work.turn.num_tokens for work in works)
        return [
            Cost(
                queue_ms=(start - work.admitted_s) * 1000.0,
                compute_ms=compute_ms,
                num_conversations=num_conversations,
                num_tenants=num_tenants,
                num_cached_rows=num_cached_rows.get(work.turn, 0),
                share_ms=ms_a_token * work.turn.num_tokens,
            )
            for work in works
        ]


def _fail(works: Sequence[Work], error: Exception) -> None:
    """Tells those who wait for a result, and have none yet, that none will come."""
    for work in works:
        if not work.future.done():
            work.future.set_exception(error)
