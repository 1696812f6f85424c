"""A deterministic turn gets the same bits whatever happens; any other one nearly the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from preceptor.terms import ObservationKind, Reading
from services.teacher.observations import ObservationCache
from tests.toy_queue import Stepper
from tests.toy_turns import (
    FAMILIES,
    assert_close,
    exchange_turn,
    grad_of,
    observe_turn,
    speaker_of,
    teacher_of,
)

if TYPE_CHECKING:
    from services.teacher.work import ExchangeTurn, GradientsResult


def _both(stepper: Stepper, turn: ExchangeTurn) -> list[torch.Tensor]:
    """Returns all numbers a turn gets: its reply and its gradients."""
    (reply,) = stepper.forward([turn])
    (got,) = stepper.backward([(turn, grad_of(turn))])
    return _numbers(reply.values["reply"], got)


def _numbers(reply: torch.Tensor, got: GradientsResult) -> list[torch.Tensor]:
    assert got.message is not None
    return [reply, got.message, *got.codec.values()]


@pytest.mark.parametrize("reading", Reading)
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_deterministic_turn_gets_the_same_bits_whatever_happens(kind: str, reading: Reading) -> None:
    teacher = teacher_of(kind)
    turn = exchange_turn(teacher, (3, 3), reading, speaker=speaker_of(deterministic=True))
    expected = _both(Stepper(teacher), turn)
    without_graph = _both(Stepper(teacher, max_retained_bytes=0), turn)
    cached = Stepper(teacher, cache=ObservationCache(1 << 24))
    first, found = _both(cached, turn), _both(cached, turn)
    company = Stepper(teacher, cache=ObservationCache(1 << 24))
    others = [exchange_turn(teacher, (3, 3), reading, seed=seed) for seed in range(5)]
    # A batch-mate with the same inputs leaves its own rows in the cache.
    others.append(exchange_turn(teacher, (1, 3), reading, inputs=_first_row(turn)))
    replies = company.forward([*others[:3], turn, *others[3:]])
    gradients = company.backward([(each, grad_of(each)) for each in (*others[:3], turn, *others[3:])])
    among = _numbers(replies[3].values["reply"], gradients[3])
    for numbers in (without_graph, first, found, among):
        for got, wanted in zip(numbers, expected, strict=True):
            assert torch.equal(got, wanted)


def _first_row(turn: ExchangeTurn) -> dict[str, torch.Tensor] | None:
    return None if turn.inputs is None else {name: each[:1] for name, each in turn.inputs.items()}


def test_a_deterministic_observation_gets_the_same_bits_whatever_happens() -> None:
    teacher = teacher_of("classifier")
    kinds = tuple(ObservationKind)
    turn = observe_turn(teacher, kinds, lengths=(5, 3, 2), speaker=speaker_of(deterministic=True))
    (expected,) = Stepper(teacher).forward([turn])
    company = Stepper(teacher, cache=ObservationCache(1 << 24))
    others = [observe_turn(teacher, kinds, lengths=(7, 4), seed=seed) for seed in range(3)]
    for _ in range(2):
        got = company.forward([others[0], turn, *others[1:]])[1]
        assert got.values.keys() == expected.values.keys()
        for name, value in expected.values.items():
            assert torch.equal(got.values[name], value)
    assert got.cost.num_cached_rows == 3


def test_a_tenants_numbers_hardly_depend_on_who_else_is_served() -> None:
    teacher = teacher_of("encoder")
    turn = exchange_turn(teacher, (2, 2), Reading.BESIDE, seed=99)
    expected = _both(Stepper(teacher), turn)
    company = Stepper(teacher)
    others = [exchange_turn(teacher, (2, 1 + seed % 3), Reading.BESIDE, seed=seed) for seed in range(15)]
    replies = company.forward([*others, turn])
    gradients = company.backward([(each, grad_of(each)) for each in (*others, turn)])
    for got, wanted in zip(_numbers(replies[-1].values["reply"], gradients[-1]), expected, strict=True):
        assert_close(got, wanted)
