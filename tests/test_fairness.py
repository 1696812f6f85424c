"""The virtual token counter: who was served less is served next, and idling saves nothing up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.teacher.fairness import VirtualTokenCounter


def _serve(counter: VirtualTokenCounter, tenants: list[str], rounds: int, tokens: int = 10) -> dict[str, int]:
    """Serves the least served of tenants who always wait; returns the tokens each got."""
    served = dict.fromkeys(tenants, 0)
    for _ in range(rounds):
        tenant = min(tenants, key=lambda each: counter[each])
        counter.charge(tenant, tokens)
        served[tenant] += tokens
    return served


def _counter(*tenants: str, **weights: float) -> VirtualTokenCounter:
    counter = VirtualTokenCounter(weights)
    for index, tenant in enumerate(tenants):
        counter.lift(tenant, tenants[:index])
    return counter


def test_tenants_who_wait_are_served_alike() -> None:
    assert _serve(_counter("a", "b", "c"), ["a", "b", "c"], 30) == {"a": 100, "b": 100, "c": 100}


def test_weights_are_shares() -> None:
    served = _serve(_counter("a", "b", "c", a=3.0, b=0.5), ["a", "b", "c"], 90)
    assert served == {"a": 600, "b": 100, "c": 200}


def test_one_who_was_idle_is_lifted_to_the_least_served_who_waits() -> None:
    counter = _counter("a", "b", "idle")
    _serve(counter, ["a", "b"], 20)
    counter.lift("idle", ["a", "b"])
    assert counter["idle"] == min(counter["a"], counter["b"]) == 100
    served = _serve(counter, ["a", "b", "idle"], 30)
    assert set(served.values()) == {100}


def test_one_who_left_and_comes_back_keeps_what_it_was_served() -> None:
    counter = _counter("a", "b")
    counter.charge("b", 500)
    counter.charge("a", 100)
    counter.lift("b", ["a"])
    assert counter["b"] == 500
    assert _serve(counter, ["a", "b"], 40)["b"] == 0


def test_a_new_tenant_begins_where_an_idle_teacher_stopped() -> None:
    counter = _counter("a")
    _serve(counter, ["a"], 10)
    counter.lift("new", [])
    assert counter["new"] == 90  # the last piece was served at 90
    counter.lift("a", ["new"])
    assert _serve(counter, ["a", "new"], 21) == {"a": 100, "new": 110}


def test_gradients_of_a_tenant_that_was_never_lifted_are_charged() -> None:
    counter = _counter("a")
    counter.charge("a", 50)
    counter.charge("stranger", 10)
    assert counter["stranger"] == 10


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 50), st.booleans()), min_size=20, max_size=120)
)
def test_the_service_of_tenants_who_wait_never_drifts_apart(events: list[tuple[str, int, bool]]) -> None:
    largest = 50
    counter, waiting = VirtualTokenCounter({}), set[str]()
    together: dict[tuple[str, str], tuple[float, float]] = {}
    served = dict.fromkeys("abcd", 0.0)
    for tenant, tokens, comes in events:
        if comes and tenant not in waiting:
            counter.lift(tenant, waiting)
            for other in waiting:
                together[min(tenant, other), max(tenant, other)] = (served[min(tenant, other)],
                                                                    served[max(tenant, other)])  # fmt: skip
            waiting.add(tenant)
        elif waiting:
            least = min(waiting, key=lambda each: (counter[each], each))
            counter.charge(least, tokens)
            served[least] += tokens
            if not comes:
                waiting.discard(tenant)
        for (first, second), (then_first, then_second) in together.items():
            if {first, second} <= waiting:
                gap = (served[first] - then_first) - (served[second] - then_second)
                assert abs(gap) <= 2 * largest  # theorem 4.4 of arXiv 2401.00588
    values = [counter[tenant] for tenant in waiting]
    assert not values or max(values) - min(values) <= largest


def test_tenants_that_are_long_gone_are_forgotten() -> None:
    counter = _counter("busy")
    for number in range(5000):
        counter.lift(f"guest-{number}", ["busy"])
        counter.charge(f"guest-{number}", 1)
        counter.charge("busy", 2)
    assert len(counter._counters) < 4100
    assert counter["busy"] == 10_000


def test_guests_of_an_idle_teacher_are_forgotten_too() -> None:
    counter = VirtualTokenCounter({})
    for number in range(9000):
        counter.lift(f"guest-{number}", [])
        counter.charge(f"guest-{number}", 100)
    assert len(counter._counters) <= 4097
    assert counter["guest-8999"] == 100


def test_a_tenant_that_is_not_known_has_no_counter() -> None:
    with pytest.raises(KeyError):
        _counter("a")["b"]
