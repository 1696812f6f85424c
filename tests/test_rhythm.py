"""When conversations are expected back, learned from their own pauses."""

from __future__ import annotations

import pytest

from services.teacher.rhythm import Rhythm


def _steps(rhythm: Rhythm, name: str, count: int, *, start_s: float = 10.0) -> float:
    """Lets a conversation take steps: 2 s from a reply to its gradients, 5 s from those to the next turn."""
    now_s = start_s
    for _ in range(count):
        for after_gradients, pause_s in ((False, 2.0), (True, 5.0)):
            rhythm.came(name, now_s)
            rhythm.answered(name, now_s, after_gradients=after_gradients)
            now_s += pause_s
    return now_s


def _away(rhythm: Rhythm, name: str, now_s: float, *, after_gradients: bool) -> None:
    rhythm.came(name, now_s)
    rhythm.answered(name, now_s, after_gradients=after_gradients)


@pytest.mark.parametrize(("after_gradients", "pause_s"), [(False, 2.0), (True, 5.0)])
def test_a_pause_is_expected_to_last_about_as_long_as_the_last_times(
    after_gradients: bool,  # noqa: FBT001
    pause_s: float,
) -> None:
    rhythm = Rhythm()
    now_s = _steps(rhythm, "a", 5)
    _away(rhythm, "a", now_s, after_gradients=after_gradients)
    (back_s,) = rhythm.expected(now_s, 100.0)
    assert pause_s <= back_s - now_s <= 2 * pause_s


def test_nothing_is_expected_of_one_whose_pauses_are_not_known() -> None:
    rhythm = Rhythm()
    _away(rhythm, "a", 10.0, after_gradients=False)
    assert rhythm.expected(10.0, 100.0) == []
    assert rhythm.expected(10.0, 3.0, {"a"}) == [13.0]  # unless it is asked for by name
    assert rhythm.expected(10.0, 3.0, {"nobody"}) == []


def test_one_that_is_here_is_not_expected() -> None:
    rhythm = Rhythm()
    now_s = _steps(rhythm, "a", 3)
    rhythm.came("a", now_s)
    rhythm.came("a", now_s)
    rhythm.answered("a", now_s, after_gradients=False)
    assert rhythm.expected(now_s, 100.0) == []
    rhythm.answered("a", now_s, after_gradients=False)
    assert len(rhythm.expected(now_s, 100.0)) == 1


def test_who_should_be_back_long_ago_or_not_soon_is_not_waited_for() -> None:
    rhythm = Rhythm()
    now_s = _steps(rhythm, "a", 3)
    _away(rhythm, "a", now_s, after_gradients=False)
    assert rhythm.expected(now_s, 1.0) == []
    assert len(rhythm.expected(now_s + 2.0, 2.0)) == 1
    assert rhythm.expected(now_s + 50.0, 100.0) == []


def test_pauses_of_overlapping_turns_do_not_count() -> None:
    rhythm = Rhythm()
    now_s = _steps(rhythm, "a", 3)
    rhythm.came("a", now_s)
    rhythm.came("a", now_s + 100.0)
    rhythm.answered("a", now_s + 101.0, after_gradients=False)
    rhythm.answered("a", now_s + 101.0, after_gradients=False)
    (back_s,) = rhythm.expected(now_s + 101.0, 100.0)
    assert back_s - (now_s + 101.0) <= 4.0


def test_a_rhythm_that_changes_is_learned() -> None:
    rhythm = Rhythm()
    now_s = _steps(rhythm, "a", 3)
    for _ in range(20):
        _away(rhythm, "a", now_s, after_gradients=False)
        now_s += 20.0
    _away(rhythm, "a", now_s, after_gradients=False)
    (back_s,) = rhythm.expected(now_s, 100.0)
    assert 20.0 <= back_s - now_s <= 40.0


def test_one_that_is_gone_is_forgotten() -> None:
    rhythm = Rhythm()
    now_s = _steps(rhythm, "a", 3)
    rhythm.gone("a")
    rhythm.gone("a")
    rhythm.answered("a", now_s, after_gradients=False)  # computed while it left
    assert rhythm.expected(now_s, 100.0) == []


def test_conversations_are_expected_each_by_its_own_pauses() -> None:
    rhythm = Rhythm()
    for name in "ab":
        _steps(rhythm, name, 3)
    now_s = _steps(rhythm, "c", 3)
    for name in "abc":
        _away(rhythm, name, now_s, after_gradients=name == "b")
    assert len(rhythm.expected(now_s, 100.0)) == 3
    assert len(rhythm.expected(now_s, 5.0)) == 2
    assert len(rhythm.expected(now_s, 100.0, {"b", "c"})) == 2
