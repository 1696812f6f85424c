"""Queues and engines that a test moves on step by step, on a clock that only the test moves."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from preceptor.codec import CodecSpec, TeacherCodec
from services.teacher.engine import Engine
from services.teacher.graphs import GraphStore
from services.teacher.passes import Pass
from services.teacher.scheduling import FairQueue
from services.teacher.teaching import Teaching, batch_key
from services.teacher.work import BackwardWork, ForwardWork, Work
from tests.toy_turns import exchange_turn, speaker_of, teacher_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from concurrent.futures import Future

    from torch import Tensor

    from services.teacher.families.base import Teacher
    from services.teacher.observations import ObservationCache
    from services.teacher.work import ExchangeTurn, ForwardResult, GradientsResult, ObserveTurn

__all__ = ["PASS_S", "Clock", "IdleTeacher", "SteppedQueue", "Stepper", "work_of"]

PASS_S = 0.01
_CODEC = TeacherCodec(CodecSpec(message_dim=3), 8)


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class _Patience(threading.Condition):
    """Waiting moves a clock on; waiting for good ends the thread's work instead."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None:
            raise _NothingLeft
        self._clock.now_s += timeout
        return False


class _NothingLeft(Exception):  # noqa: N818 - no error
    """Nothing waits, and nothing can come."""


class SteppedQueue(FairQueue):
    """A queue on a fake clock: where it would wait, time passes; where nothing is left, it says so by None.

    Attributes:
        clock: its time.
        batches: what it has given out.
    """

    def __init__(
        self, graphs: GraphStore, key_of: Callable[[Work], Any] = lambda _: None, **settings: Any
    ) -> None:
        self.clock = Clock()
        defaults: dict[str, Any] = {
            "max_batch_tokens": 2048,
            "max_queued_tokens": 2**20,
            "max_wait_s": 0.02,
            "weights": {},
        }
        super().__init__(graphs, key_of=key_of, clock=self.clock, **{**defaults, **settings})
        self._changed = _Patience(self.clock)
        self.batches: list[list[Work]] = []

    def next_batch(self) -> list[Work] | None:
        try:
            batch = super().next_batch()
        except _NothingLeft:
            return None
        if batch is not None:
            self.batches.append(batch)
        return batch


class Stepper:
    """An engine with a `SteppedQueue`, without a thread: `run` computes all that waits."""

    def __init__(
        self,
        teacher: Teacher,
        *,
        max_retained_bytes: int = 1 << 30,
        cache: ObservationCache | None = None,
        **settings: Any,
    ) -> None:
        self.graphs = GraphStore(max_retained_bytes)
        self.queue = SteppedQueue(self.graphs, batch_key(teacher), **settings)
        self.engine = Engine(
            Teaching(teacher, cache), queue=self.queue, graphs=self.graphs, clock=self.queue.clock
        )

    def run(self) -> None:
        """Computes batch after batch until nothing waits."""
        self.engine._run()

    def forward(self, turns: Sequence[ExchangeTurn | ObserveTurn]) -> list[ForwardResult]:
        """Computes turns that were admitted at once."""
        futures = [self.engine.forward(turn) for turn in turns]
        return self._results(futures)

    def backward(
        self, asked: Sequence[tuple[ExchangeTurn | ObserveTurn, Mapping[str, Tensor]]]
    ) -> list[GradientsResult]:
        """Computes gradients that were asked for at once."""
        futures = [self.engine.backward(turn, gradients) for turn, gradients in asked]
        return self._results(futures)

    def _results(self, futures: Sequence[Future[Any]]) -> list[Any]:
        self.run()
        return [future.result(0) for future in futures]


def work_of(
    tenant: str,
    tokens: int = 10,
    conversation: str = "",
    *,
    layer: int = 1,
    backward: bool = False,
    deterministic: bool = False,
) -> Work:
    """A piece of work with so many tokens; work with another layer is of another kind."""
    turn = exchange_turn(
        teacher_of("module"),
        (tokens, 1),
        codec=_CODEC,
        split_layer=layer,
        speaker=speaker_of(tenant, conversation or tenant, deterministic=deterministic),
    )
    return BackwardWork(turn, 0.0, {}) if backward else ForwardWork(turn, 0.0)


def _key(work: Work) -> Hashable:
    if work.turn.speaker.deterministic:
        return work
    return (work.turn.split_layer, isinstance(work, BackwardWork))


class IdleTeacher:
    """A queue and the passes it is kept for, without anything that computes."""

    def __init__(self, deterministic: str = "", **settings: object) -> None:
        self._deterministic = deterministic
        self.graphs = GraphStore(10**6)
        self.queue = SteppedQueue(self.graphs, _key, **settings)
        self.clock = self.queue.clock

    def turn(self, tenant: str, tokens: int = 10, conversation: str = "") -> ForwardWork:
        work = work_of(tenant, tokens, conversation, deterministic=tenant in set(self._deterministic))
        return ForwardWork(work.turn, self.clock())

    def come(self, *works: Work) -> None:
        """Admits works that come now."""
        for work in works:
            work.admitted_s = self.clock()
            self.queue.admit(work)

    def compute(self, *, keep: bool = True) -> list[Work] | None:
        """Takes the next batch, which takes `PASS_S`, and keeps the pass of turns."""
        batch = self.queue.next_batch()
        if batch is None:
            return None
        self.clock.now_s += PASS_S
        if keep and isinstance(batch[0], ForwardWork):
            self.keep(batch)
        for work in batch:
            graph = self.graphs.find(work.turn)
            if isinstance(work, BackwardWork) and graph is not None:
                self.graphs.remove(graph)
        self.queue.finished(batch, PASS_S)
        return batch

    def keep(self, batch: list[Work]) -> Pass:
        made = Pass([work.turn for work in batch])
        made.num_bytes = 1
        self.graphs.put(made)
        return made

    def step(self, tenants: str) -> None:
        """Lets the conversations of some tenants take a step together, a short while after their last."""
        turns = [self.turn(tenant) for tenant in tenants]
        self.come(*turns)
        while self.compute():
            pass
        self.clock.now_s += PASS_S / 2
        self.come(*(self.gradients(turn) for turn in turns))
        while self.compute():
            pass
        self.clock.now_s += PASS_S / 2

    def gradients(self, work: ForwardWork) -> BackwardWork:
        return BackwardWork(work.turn, self.clock(), {})
