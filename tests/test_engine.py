"""The engine: one thread, tenants in one pass, graphs under a budget, no failure that stops it."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import pytest
import torch

from preceptor.terms import ObservationKind, Reading
from services.teacher.engine import Engine
from services.teacher.errors import OverloadedError
from services.teacher.fifo import FifoQueue
from services.teacher.graphs import GraphStore
from services.teacher.teaching import Teaching
from services.teacher.work import ForwardWork
from tests.toy import WatchedTeacher
from tests.toy_server import GatedQueue
from tests.toy_turns import exchange_turn, observe_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher
    from services.teacher.work import ExchangeTurn, ForwardResult, GradientsResult

GRADIENTS = {"reply": torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(9))}
PLENTY = 1 << 30


def _turn(teacher: Teacher, seed: int = 0, *, rows: int = 2, wants_gradient: bool = True) -> ExchangeTurn:
    return exchange_turn(teacher, (rows, 2), Reading.BESIDE, seed=seed, wants_gradient=wants_gradient)


def _same(first: GradientsResult, second: GradientsResult) -> bool:
    assert first.message is not None
    assert second.message is not None
    assert first.codec.keys() == second.codec.keys() != set()
    return torch.equal(first.message, second.message) and all(
        torch.equal(gradient, second.codec[name]) for name, gradient in first.codec.items()
    )


@pytest.fixture
def make() -> Iterator[Callable[..., Engine]]:
    """Builds engines that serve first come, first served, and stops those that were started."""
    engines: list[Engine] = []

    def build(teacher: Teacher, max_queued: int = 8, max_retained_bytes: int = PLENTY) -> Engine:
        engine = Engine(
            Teaching(teacher, None), queue=FifoQueue(max_queued), graphs=GraphStore(max_retained_bytes)
        )
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.stop()


@pytest.fixture
def gated(
    tiny_teacher: Teacher, service_config: ServiceConfig
) -> Iterator[tuple[Engine, GatedQueue, list[str]]]:
    """A running engine, its queue, and what it used of its teacher."""
    used: list[str] = []
    teacher, graphs = WatchedTeacher(tiny_teacher), GraphStore(PLENTY)
    queue = GatedQueue(tiny_teacher, graphs, service_config)
    engine = Engine(Teaching(teacher, None), queue=queue, graphs=graphs)
    teacher.watch = used.append
    engine.start()
    yield engine, queue, used
    engine.stop()


def test_work_is_done_in_the_order_it_was_admitted(
    make: Callable[..., Engine], tiny_teacher: Teacher
) -> None:
    engine = make(tiny_teacher)
    done: list[Future[ForwardResult]] = []
    futures = [engine.forward(_turn(tiny_teacher, seed)) for seed in range(6)]
    for future in reversed(futures):
        future.add_done_callback(done.append)
    assert engine.queued_tokens == 6 * 14
    engine.start()
    engine.stop()
    assert done == futures
    assert engine.queued_tokens == 0


def test_retained_and_recomputed_graphs_give_the_same_gradients(
    make: Callable[..., Engine], tiny_teacher: Teacher
) -> None:
    results = []
    turn = _turn(tiny_teacher)
    for max_retained_bytes in (PLENTY, 0):
        engine = make(tiny_teacher, max_retained_bytes=max_retained_bytes)
        engine.start()
        engine.forward(turn).result(30)
        results.append(engine.backward(turn, GRADIENTS).result(30))
    assert [result.retained for result in results] == [True, False]
    assert _same(*results)


def test_a_second_backward_pass_recomputes_and_gives_the_same(engine: Engine, tiny_teacher: Teacher) -> None:
    turn = _turn(tiny_teacher)
    engine.forward(turn).result(30)
    first, second = (engine.backward(turn, GRADIENTS).result(30) for _ in range(2))
    assert (first.retained, second.retained) == (True, False)
    assert _same(first, second)


def test_the_budget_holds_for_the_engine(make: Callable[..., Engine], tiny_teacher: Teacher) -> None:
    engine = make(tiny_teacher)
    engine.start()
    engine.forward(_turn(tiny_teacher, rows=1)).result(30)
    one = engine.graphs.num_bytes
    assert one > 0
    engine = make(tiny_teacher, max_retained_bytes=int(2.5 * one))
    engine.start()
    turns = [_turn(tiny_teacher, seed, rows=1) for seed in range(3)]
    for turn in turns:
        engine.forward(turn).result(30)
    gradients = {"reply": torch.ones(1, 2, 3)}
    retained = [engine.backward(turn, gradients).result(30).retained for turn in turns]
    assert retained == [False, True, True]


def test_a_turn_that_wants_no_gradient_is_computed_without_a_graph(
    engine: Engine, tiny_teacher: Teacher
) -> None:
    result = engine.forward(_turn(tiny_teacher, wants_gradient=False)).result(30)
    assert not result.values["reply"].requires_grad
    assert len(engine.graphs) == 0
    with_graph = engine.forward(_turn(tiny_teacher)).result(30)
    assert not with_graph.values["reply"].requires_grad
    assert torch.equal(with_graph.values["reply"], result.values["reply"])


def test_a_turn_that_is_forgotten_keeps_no_graph(engine: Engine, tiny_teacher: Teacher) -> None:
    turn = _turn(tiny_teacher)
    engine.forward(turn).result(30)
    assert len(engine.graphs) == 1
    engine.forget(turn)
    engine.gone(turn.speaker.conversation)
    assert (len(engine.graphs), engine.graphs.num_bytes) == (0, 0)


def test_a_failing_teacher_fails_its_turns_and_no_more(
    make: Callable[..., Engine], tiny_teacher: Teacher
) -> None:
    def watch(name: str) -> None:
        if name == "upper":
            raise RuntimeError("broken")

    teacher = WatchedTeacher(tiny_teacher)
    engine = make(teacher, max_retained_bytes=0)
    engine.start()
    teacher.watch = watch
    futures: list[Future[ForwardResult] | Future[GradientsResult]] = [engine.forward(_turn(tiny_teacher))]
    futures.append(engine.backward(_turn(tiny_teacher), GRADIENTS))
    for future in futures:
        with pytest.raises(RuntimeError, match="broken"):
            future.result(30)
    teacher.watch = lambda _: None
    assert engine.forward(_turn(tiny_teacher)).result(30).values["reply"].shape == (2, 2, 3)


def test_a_full_queue_is_overloaded(make: Callable[..., Engine], tiny_teacher: Teacher) -> None:
    engine = make(tiny_teacher, max_queued=2, max_retained_bytes=0)
    futures = [engine.forward(_turn(tiny_teacher)) for _ in range(2)]
    with pytest.raises(OverloadedError, match="queue: got one more turn, expected at most 2") as caught:
        engine.backward(_turn(tiny_teacher), GRADIENTS)
    assert caught.value.retry_after_s > 0
    engine.start()
    assert all(future.result(30).values for future in futures)


def test_cancelled_work_is_not_computed(
    gated: tuple[Engine, GatedQueue, list[str]], tiny_teacher: Teacher
) -> None:
    engine, queue, used = gated
    queue.gate.clear()
    futures = [engine.forward(_turn(tiny_teacher, seed)) for seed in range(3)]
    assert futures[0].cancel()
    assert futures[1].cancel()
    used.clear()
    queue.gate.set()
    futures[2].result(30)
    engine.stop()
    assert used.count("upper") == 1
    assert len(engine.graphs) == 1


def test_a_batch_whose_students_are_all_gone_is_not_computed(
    gated: tuple[Engine, GatedQueue, list[str]], tiny_teacher: Teacher
) -> None:
    engine, queue, used = gated
    queue.gate.clear()
    assert all(engine.forward(_turn(tiny_teacher, seed)).cancel() for seed in range(3))
    used.clear()
    queue.gate.set()
    engine.stop()
    assert "upper" not in used


def test_stopping_computes_what_was_admitted_and_takes_nothing_more(
    gated: tuple[Engine, GatedQueue, list[str]], tiny_teacher: Teacher
) -> None:
    engine, queue, _ = gated
    queue.gate.clear()
    futures = [engine.forward(_turn(tiny_teacher, seed)) for seed in range(4)]
    engine.stop()
    assert [future.result(0).values["reply"].shape for future in futures] == [(2, 2, 3)] * 4
    with pytest.raises(OverloadedError):
        engine.forward(_turn(tiny_teacher))


def test_an_engine_that_never_started_can_be_stopped(
    make: Callable[..., Engine], tiny_teacher: Teacher
) -> None:
    make(tiny_teacher).stop()


def test_a_closed_queue_gives_out_what_it_has(tiny_teacher: Teacher) -> None:
    queue = FifoQueue(2)
    work = ForwardWork(_turn(tiny_teacher), 0.0)
    queue.admit(work)
    queue.close()
    queue.gone("nobody")
    assert queue.next_batch() == [work]
    assert queue.next_batch() is None


def test_closing_wakes_whoever_waits_for_work(tiny_teacher: Teacher, service_config: ServiceConfig) -> None:
    batches = []
    for queue in (FifoQueue(2), GatedQueue(tiny_teacher, GraphStore(0), service_config)):
        thread = threading.Thread(target=lambda queue=queue: batches.append(queue.next_batch()))
        thread.start()
        queue.close()
        thread.join(30)
    assert batches == [None, None]


def test_results_say_how_long_they_waited_and_took(tiny_teacher: Teacher) -> None:
    ticks = itertools.count()
    engine = Engine(
        Teaching(tiny_teacher, None),
        queue=FifoQueue(2),
        graphs=GraphStore(0),
        clock=lambda: float(next(ticks)),
    )
    turn = _turn(tiny_teacher)
    forward, backward = engine.forward(turn), engine.backward(turn, GRADIENTS)  # at 0 s and 1 s
    engine.start()
    engine.stop()
    costs = [forward.result(0).cost, backward.result(0).cost]
    assert all(cost.queue_ms > 0 for cost in costs)
    assert [cost.compute_ms for cost in costs] == [1000.0, 1000.0]
    assert costs[1].queue_ms > costs[0].queue_ms >= 2000.0


def test_a_passes_graph_is_measured_for_every_shape(tiny_teacher: Teacher) -> None:
    teaching = Teaching(tiny_teacher, None)
    small, large = _turn(tiny_teacher, rows=1), _turn(tiny_teacher, rows=4)
    sizes = [teaching.forward([turn], with_graph=True)[0][0].num_bytes for turn in (small, large, small)]
    assert 0 < sizes[0] == sizes[2] < sizes[1]
    assert teaching.forward([small], with_graph=False)[0][0].num_bytes == 0
    observe = observe_turn(tiny_teacher, [ObservationKind.STATE_CONSISTENCY])
    assert teaching.forward([observe], with_graph=True)[0][0].num_bytes > 0
