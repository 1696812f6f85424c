"""Who is next, and who shares the pass: fair shares, one kind at a time, nobody lost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from services.teacher.backlog import Backlog, num_charged_tokens
from services.teacher.work import BackwardWork, Work
from tests.toy_queue import work_of

if TYPE_CHECKING:
    from collections.abc import Mapping


def _backlog(*works: Work, weights: Mapping[str, float] | None = None) -> Backlog:
    backlog = Backlog(weights or {}, lambda work: (work.turn.split_layer, isinstance(work, BackwardWork)))
    for work in works:
        backlog.put(work)
    return backlog


def _tenants(batch: list[Work]) -> Counter[str]:
    tokens: Counter[str] = Counter()
    for work in batch:
        tokens[work.turn.speaker.tenant] += work.turn.num_tokens
    return tokens


def test_a_batch_takes_tenants_in_turn() -> None:
    backlog = _backlog(*(work_of(tenant) for tenant in "aaabbbccc"))
    assert _tenants(backlog.take(60, ())) == {"a": 20, "b": 20, "c": 20}
    assert (len(backlog), backlog.num_tokens) == (3, 30)
    assert _tenants(backlog.take(60, ())) == {"a": 10, "b": 10, "c": 10}
    assert (len(backlog), backlog.num_tokens) == (0, 0)


def test_a_heavy_tenant_takes_its_share_of_a_batch_and_no_more() -> None:
    heavy = [work_of("heavy") for _ in range(30)]
    backlog = _backlog(*heavy, work_of("light"))
    assert _tenants(backlog.take(100, ())) == {"heavy": 50, "light": 10}
    assert _tenants(backlog.take(100, {"x", "y", "z"})) == {"heavy": 30}  # less than 25 does not end it
    assert _tenants(backlog.take(100, ())) == {"heavy": 100}


def test_the_first_piece_is_taken_whatever_its_size() -> None:
    backlog = _backlog(work_of("a", 500), work_of("b", 10))
    assert [work.turn.num_tokens for work in backlog.take(100, ())] == [500]
    assert [work.turn.num_tokens for work in backlog.take(100, ())] == [10]


def test_what_does_not_fit_waits_and_smaller_work_of_others_goes() -> None:
    backlog = _backlog(work_of("a", 60), work_of("b", 60), work_of("c", 30))
    assert _tenants(backlog.take(100, ())) == {"a": 60, "c": 30}
    assert _tenants(backlog.take(100, ())) == {"b": 60}


def test_only_one_kind_is_computed_at_a_time() -> None:
    backlog = _backlog(
        work_of("a", layer=1), work_of("b", layer=2), work_of("c", layer=1), work_of("c", backward=True)
    )
    kinds = []
    while len(backlog):
        kinds.append([(work.turn.split_layer, type(work)) for work in backlog.take(100, ())])
    assert sorted(map(len, kinds)) == [1, 1, 2]
    assert all(len(set(kind)) == 1 for kind in kinds)


def test_weights_are_shares_of_service() -> None:
    backlog = _backlog(*(work_of(tenant) for tenant in "ab" * 40), weights={"a": 3.0})
    served: Counter[str] = Counter()
    for _ in range(10):
        served += _tenants(backlog.take(40, ()))
    assert abs(served["a"] - 300) <= 10
    assert served["a"] + served["b"] == 400


def test_a_pass_is_shared_by_weight() -> None:
    backlog = _backlog(*(work_of(tenant) for tenant in "ab" * 40), weights={"a": 3.0})
    assert _tenants(backlog.take(40, ())) == {"a": 30, "b": 10}
    assert _tenants(backlog.take(40, {"c"})) == {"a": 30, "b": 10}  # 8 for c; the last turn may go over


def test_backward_passes_cost_more_and_recomputed_ones_most() -> None:
    forward, backward = work_of("a", 10), work_of("a", 10, backward=True)
    kept = num_charged_tokens(backward, recomputed=False)
    again = num_charged_tokens(backward, recomputed=True)
    assert num_charged_tokens(forward, recomputed=False) == 10
    assert again == kept + 10 > kept > 10
    backlog = _backlog(backward, work_of("b", 10), work_of("a", 10), work_of("b", 10))
    assert [_tenants(backlog.take(10, ())) for _ in range(4)] == [{"a": 10}, {"b": 10}, {"b": 10}, {"a": 10}]


def test_no_turn_overtakes_another_of_its_conversation() -> None:
    first = work_of("a", 60, "talk")
    blocked, free = work_of("a", 10, "talk"), work_of("a", 10, "other")
    backlog = _backlog(work_of("_", 50), first, blocked, free)  # of the same share, so "_" is first
    batch = backlog.take(100, ())
    assert blocked not in batch
    assert free in batch
    assert backlog.take(100, ()) == [first, blocked]


pieces = st.builds(
    work_of,
    st.sampled_from("abc"),
    st.integers(1, 40),
    st.sampled_from(["", "x", "y"]),
    layer=st.integers(1, 2),
    backward=st.booleans(),
)


@given(
    st.lists(pieces, min_size=1, max_size=25),
    st.integers(1, 100),
    st.sets(st.sampled_from("abcde")),
    st.data(),
)
def test_everything_that_was_put_is_taken_once_and_in_order(
    works: list[Work], max_tokens: int, active: set[str], data: st.DataObject
) -> None:
    backlog, waiting, taken = _backlog(), list(works), list[Work]()
    while waiting or len(backlog):
        for _ in range(data.draw(st.integers(0 if len(backlog) else 1, 4))):
            if waiting:
                backlog.put(waiting.pop(0))
        batch = backlog.take(max_tokens, active)
        assert batch
        assert len(batch) == 1 or sum(work.turn.num_tokens for work in batch) <= max_tokens
        assert len({(work.turn.split_layer, type(work)) for work in batch}) == 1
        taken += batch
        left = works[: len(works) - len(waiting)]
        assert set(backlog) == set(left) - set(taken)
        assert backlog.num_tokens == sum(work.turn.num_tokens for work in backlog)
    assert len(taken) == len(works)
    assert set(taken) == set(works)
    for speaker in {(work.turn.speaker.tenant, work.turn.speaker.conversation) for work in works}:
        own, came = (
            [work for work in each if (work.turn.speaker.tenant, work.turn.speaker.conversation) == speaker]
            for each in (taken, works)
        )
        assert own == came
