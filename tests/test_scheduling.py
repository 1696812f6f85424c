"""What is computed next and with whom: gradients by pass, turns by share, waiting only where it pays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.teacher.errors import OverloadedError
from services.teacher.work import BackwardWork, ExchangeTurn, ForwardWork, Work
from tests.toy_queue import PASS_S, IdleTeacher

STEP_S = 0.1


def _of(batch: list[Work] | None) -> set[ExchangeTurn]:
    assert batch is not None
    return {work.turn for work in batch}  # type: ignore[misc]


def test_turns_that_wait_share_a_pass_and_none_waits_alone() -> None:
    teacher = IdleTeacher()
    turns = [teacher.turn(tenant) for tenant in "abc"]
    teacher.come(*turns)
    now_s = teacher.clock()
    assert _of(teacher.queue.next_batch()) == {work.turn for work in turns}
    assert teacher.clock() == now_s
    assert teacher.queue.next_batch() is None


def test_a_batch_is_bounded_and_the_rest_follows() -> None:
    teacher = IdleTeacher(max_batch_tokens=25)
    teacher.come(*(teacher.turn(tenant) for tenant in "abcde"))
    sizes = []
    while (batch := teacher.compute()) is not None:
        sizes.append(len(batch))
    assert sum(sizes) == 5
    assert max(sizes) == 2


def test_gradients_of_a_whole_pass_are_computed_at_once_and_before_new_turns() -> None:
    teacher = IdleTeacher()
    turns = [teacher.turn(tenant) for tenant in "abc"]
    teacher.come(*turns)
    teacher.compute()
    teacher.come(teacher.turn("d"), *(teacher.gradients(turn) for turn in turns))
    assert teacher.queue.num_queued_tokens == 40
    now_s = teacher.clock()
    batch = teacher.queue.next_batch()
    assert _of(batch) == {work.turn for work in turns}
    assert batch is not None
    assert all(isinstance(work, BackwardWork) for work in batch)
    assert teacher.clock() == now_s


def test_gradients_wait_for_the_others_of_their_pass_for_as_long_as_a_pass_takes() -> None:
    teacher = IdleTeacher()
    for _ in range(30):
        teacher.step("abc")  # so that the teacher knows how long a pass takes, and their pauses
    turns = [teacher.turn(tenant) for tenant in "abc"]
    teacher.come(*turns)
    teacher.compute()
    teacher.come(*(teacher.gradients(turn) for turn in turns[:2]))
    start_s = teacher.clock()
    batch = teacher.queue.next_batch()
    assert 0 < teacher.clock() - start_s <= PASS_S * 1.1
    assert _of(batch) == {work.turn for work in turns[:2]}  # two thirds are worth the whole graph
    assert teacher.graphs.find(turns[0].turn) is not None


def test_few_gradients_of_a_pass_are_computed_again_rather_than_the_whole_pass() -> None:
    teacher = IdleTeacher()
    turns = [teacher.turn(tenant) for tenant in "abcd"]
    teacher.come(*turns)
    teacher.compute()
    graph = teacher.graphs.find(turns[0].turn)
    teacher.clock.now_s += STEP_S
    teacher.come(teacher.gradients(turns[0]))
    assert _of(teacher.queue.next_batch()) == {turns[0].turn}
    assert teacher.graphs.find(turns[0].turn) is None
    assert teacher.graphs.find(turns[1].turn) is graph  # it is there for the others
    late = [teacher.gradients(turn) for turn in turns[1:]]
    teacher.come(*late)
    assert _of(teacher.queue.next_batch()) == {work.turn for work in turns[1:]}


def test_latecomers_of_several_passes_are_computed_again_together() -> None:
    teacher = IdleTeacher()
    late = []
    for _ in range(3):
        turns = [teacher.turn(tenant) for tenant in "abcd"]
        teacher.come(*turns)
        teacher.compute()
        late.append(teacher.gradients(turns[0]))
    teacher.clock.now_s += STEP_S
    teacher.come(*late)
    assert _of(teacher.queue.next_batch()) == {work.turn for work in late}


def test_gradients_of_a_pass_that_was_dropped_do_not_wait() -> None:
    teacher = IdleTeacher()
    turns = [teacher.turn(tenant) for tenant in "ab"]
    teacher.come(*turns)
    teacher.compute()
    teacher.come(teacher.gradients(turns[0]))
    graph = teacher.graphs.find(turns[1].turn)
    assert graph is not None
    teacher.graphs.remove(graph)
    now_s = teacher.clock()
    assert _of(teacher.queue.next_batch()) == {turns[0].turn}
    assert teacher.clock() == now_s


def test_turns_that_nobody_will_ask_for_again_are_not_waited_for() -> None:
    teacher = IdleTeacher()
    for _ in range(10):
        teacher.step("ab")
    turns = [teacher.turn(tenant) for tenant in "ab"]
    teacher.come(*turns)
    teacher.compute()
    teacher.graphs.release(turns[1].turn)
    teacher.come(teacher.gradients(turns[0]))
    now_s = teacher.clock()
    assert _of(teacher.queue.next_batch()) == {turns[0].turn}
    assert teacher.clock() == now_s


def test_a_turns_second_gradients_have_a_pass_of_their_own() -> None:
    teacher = IdleTeacher()
    turn = teacher.turn("a")
    teacher.come(turn)
    teacher.compute()
    twice = [teacher.gradients(turn) for _ in range(2)]
    teacher.come(*twice)
    assert [teacher.compute(), teacher.compute(), teacher.compute()] == [twice[:1], twice[1:], None]


def test_a_light_tenant_is_served_in_the_next_pass_however_much_another_has_waiting() -> None:
    teacher = IdleTeacher(max_batch_tokens=50)
    teacher.come(*(teacher.turn("heavy", 10, f"heavy-{number}") for number in range(50)))
    for _ in range(3):
        teacher.compute()
    light = teacher.turn("light")
    teacher.come(light)
    batch = teacher.compute()
    assert batch is not None
    assert light in batch
    assert len(batch) == 4  # half of the pass is the heavy tenant's, and one piece more


def test_beyond_its_room_a_queue_is_overloaded_and_says_when_to_come_back() -> None:
    teacher = IdleTeacher(max_queued_tokens=1000, max_batch_tokens=20)
    teacher.step("a")
    waits = []
    for filled in (300, 600, 900):
        while teacher.queue.num_queued_tokens < filled:
            teacher.come(teacher.turn("a"))
        with pytest.raises(OverloadedError) as caught:
            teacher.come(teacher.turn("a", 1001 - filled))
        waits.append(caught.value.retry_after_s)
        assert f"got {1001 - filled} tokens more than {filled}, expected at most 1000" in str(caught.value)
    assert 0 < waits[0] < waits[1] < waits[2]
    assert teacher.queue.num_queued_tokens == 900  # what was refused is not there
    teacher.come(teacher.turn("b", 100))


def test_a_retry_is_neither_at_once_nor_never() -> None:
    teacher = IdleTeacher(max_queued_tokens=10**9)
    fast, slow = [teacher.turn("a", 100)], [teacher.turn("a", 1)]
    for batch, seconds, expected in ((fast, 1e-9, 0.05), (slow, 1e9, 30.0)):
        queue = IdleTeacher(max_queued_tokens=1000).queue
        queue.admit(teacher.turn("a", 900))
        with pytest.raises(OverloadedError) as caught:
            queue.admit(teacher.turn("a", 900))
        assert caught.value.retry_after_s == 0.05  # nothing is known yet
        queue.finished(list(batch), seconds)
        with pytest.raises(OverloadedError) as caught:
            queue.admit(teacher.turn("a", 900))
        assert caught.value.retry_after_s == expected


def test_a_turn_larger_than_the_room_is_taken_by_an_empty_queue() -> None:
    teacher = IdleTeacher(max_queued_tokens=10)
    teacher.come(teacher.turn("a", 500))
    with pytest.raises(OverloadedError):
        teacher.come(teacher.turn("a", 1))
    assert len(teacher.compute() or []) == 1
    teacher.come(teacher.turn("b", 1))


def test_gradients_that_wait_count_as_queued() -> None:
    teacher = IdleTeacher(max_queued_tokens=100)
    turns = [teacher.turn(tenant, 50) for tenant in "ab"]
    teacher.come(*turns)
    teacher.compute()
    teacher.come(teacher.gradients(turns[0]), teacher.gradients(turns[1]))
    with pytest.raises(OverloadedError):
        teacher.come(teacher.turn("a"))


def test_nobody_is_kept_out_by_the_backlog_of_another() -> None:
    teacher = IdleTeacher(max_queued_tokens=100)
    teacher.come(*(teacher.turn("heavy", 10, f"heavy-{number}") for number in range(10)))
    with pytest.raises(OverloadedError):
        teacher.come(teacher.turn("heavy"))
    teacher.come(*(teacher.turn("light", 10, f"light-{number}") for number in range(5)))
    with pytest.raises(OverloadedError):
        teacher.come(teacher.turn("light"))  # it has its half
    assert teacher.queue.num_queued_tokens == 150


def test_batches_that_nobody_waited_for_say_nothing_of_the_rate() -> None:
    teacher = IdleTeacher(max_queued_tokens=1000)
    teacher.step("a")
    queue, cancelled = teacher.queue, teacher.turn("a", 900)
    known = queue._tokens_per_s
    assert cancelled.future.cancel()
    queue.finished([cancelled], 1e-6)
    assert queue._tokens_per_s == known > 0


def test_a_closed_queue_gives_out_what_it_has_without_waiting() -> None:
    teacher = IdleTeacher()
    for _ in range(30):
        teacher.step("abcd")
    turns = [teacher.turn(tenant) for tenant in "abcd"]
    teacher.come(*turns)
    teacher.compute()
    teacher.come(teacher.gradients(turns[0]), teacher.turn("b"))
    teacher.queue.close()
    now_s = teacher.clock()
    batches = [teacher.queue.next_batch() for _ in range(3)]
    assert sorted(len(batch) for batch in batches if batch) == [1, 1]
    assert batches[2] is None
    assert teacher.clock() == now_s
    with pytest.raises(OverloadedError):
        teacher.come(teacher.turn("a"))


events = st.lists(
    st.one_of(
        st.tuples(st.just("turn"), st.integers(0, 2), st.integers(1, 30)),
        st.tuples(
            st.sampled_from(["gradients", "compute", "drop", "forget", "wait"]),
            st.integers(0, 50),
            st.just(0),
        ),
    ),
    max_size=40,
)


def _about_a_served_turn(teacher: IdleTeacher, kind: str, work: ForwardWork) -> list[Work]:
    """Asks for gradients, or has a turn or its pass forgotten; returns what was admitted."""
    graph = teacher.graphs.find(work.turn)
    if kind == "gradients":
        gradients = teacher.gradients(work)
        teacher.come(gradients)
        return [gradients]
    if kind == "forget":
        teacher.graphs.release(work.turn)
    elif graph is not None:
        teacher.graphs.remove(graph)
    return []


@given(events, st.integers(1, 80))
def test_everything_admitted_comes_out_exactly_once(
    drawn: list[tuple[str, int, int]], max_batch_tokens: int
) -> None:
    teacher = IdleTeacher(max_batch_tokens=max_batch_tokens)
    admitted, taken = list[Work](), list[Work]()
    for kind, number, tokens in drawn:
        served = [work for work in taken if isinstance(work, ForwardWork)]
        if kind == "turn":
            admitted.append(teacher.turn("abc"[number], tokens))
            teacher.come(admitted[-1])
        elif kind == "wait":
            teacher.clock.now_s += PASS_S
        elif kind == "compute":
            taken += teacher.compute() or []
        elif served:
            admitted += _about_a_served_turn(teacher, kind, served[number % len(served)])
    while (batch := teacher.compute()) is not None:
        taken += batch
    assert teacher.queue.num_queued_tokens == 0
    assert len(taken) == len(admitted)
    assert set(taken) == set(admitted)
    for tenant in "abc":
        own, came = (
            [work for work in each if work.turn.speaker.tenant == tenant and isinstance(work, ForwardWork)]
            for each in (taken, admitted)
        )
        assert own == came
