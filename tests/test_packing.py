"""Sequences of different lengths in one batch, and out of it again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.teacher.families.base import States
from services.teacher.packing import (
    cut_to,
    join_inputs,
    length_bucket,
    pack,
    pad_to,
    pad_to_buckets,
    stack_rows,
    unpack,
)
from tests.toy_turns import ragged


def _states(rows: int, length: int) -> States:
    return States(torch.randn(rows, length, 3), ragged([1 + row % length for row in range(rows)], length))


@given(st.integers(1, 5000))
def test_a_bucket_holds_its_lengths_and_at_most_a_third_of_padding(length: int) -> None:
    bucket = length_bucket(length)
    assert length <= bucket
    assert bucket - length <= bucket / 3
    assert length_bucket(bucket) == bucket


def test_the_buckets_are_powers_of_two_and_what_lies_between() -> None:
    assert sorted({length_bucket(length) for length in range(1, 49)}) == [
        1,
        2,
        3,
        4,
        6,
        8,
        12,
        16,
        24,
        32,
        48,
    ]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=5))
def test_unpacking_undoes_packing(shapes: list[tuple[int, int]]) -> None:
    chunks = [_states(rows, length) for rows, length in shapes]
    packed = pack(chunks)
    assert packed.mask.shape == (sum(rows for rows, _ in shapes), max(length for _, length in shapes))
    assert packed.hidden_states.shape[:2] == packed.mask.shape
    for chunk, again in zip(chunks, unpack(packed, chunks), strict=True):
        assert torch.equal(again.hidden_states, chunk.hidden_states)
        assert torch.equal(again.mask, chunk.mask)
    assert packed.mask.sum() == sum(chunk.mask.sum() for chunk in chunks)


def test_padding_is_not_valid_and_zero() -> None:
    states = _states(2, 3)
    padded = pad_to(states, 5)
    assert torch.equal(padded.hidden_states[:, :3], states.hidden_states)
    assert not padded.hidden_states[:, 3:].any()
    assert not padded.mask[:, 3:].any()
    assert pad_to(states, 3) is states


@given(st.integers(1, 9), st.integers(1, 9))
def test_cutting_undoes_padding_to_buckets(rows: int, length: int) -> None:
    states = _states(rows, length)
    padded = pad_to_buckets(states)
    assert padded.mask.shape == (length_bucket(rows), length_bucket(length))
    assert padded.hidden_states.shape[:2] == padded.mask.shape
    assert padded.mask.sum() == states.mask.sum()
    again = cut_to(padded, states)
    assert torch.equal(again.hidden_states, states.hidden_states)
    assert torch.equal(again.mask, states.mask)


def test_inputs_of_rows_are_joined_at_the_longest() -> None:
    parts = [
        {"ids": torch.ones(1, 2, dtype=torch.long), "x": torch.ones(1, 2, 3), "item": torch.tensor([4])},
        {"ids": torch.ones(1, 3, dtype=torch.long), "x": torch.ones(1, 3, 3), "item": torch.tensor([5])},
    ]
    joined = join_inputs(parts)
    assert joined["ids"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert joined["x"].shape == (2, 3, 3)
    assert not joined["x"][0, 2].any()
    assert joined["item"].tolist() == [4, 5]


@pytest.mark.parametrize("length", [0, 3, 6])
def test_rows_are_stacked_at_the_longest_or_longer(length: int) -> None:
    rows = [(each.hidden_states, each.mask) for each in (_states(1, 4), _states(1, 2))]
    for count in (1, 2):
        stacked = stack_rows(rows[:count], length, torch.device("cpu"))
        assert stacked.mask.shape == (count, max(length, 4))
        for index, (hidden_states, mask) in enumerate(rows[:count]):
            assert torch.equal(stacked.hidden_states[index, : mask.shape[1]], hidden_states[0])
            assert torch.equal(stacked.mask[index, : mask.shape[1]], mask[0])
            assert not stacked.mask[index, mask.shape[1] :].any()


def test_gradients_flow_through_packing() -> None:
    first, second = (torch.randn(1, length, 2, requires_grad=True) for length in (1, 3))
    chunks = [States(each, torch.ones(each.shape[:2], dtype=torch.bool)) for each in (first, second)]
    parts = unpack(pack(chunks), chunks)
    torch.autograd.backward([part.hidden_states.sum() * (n + 1) for n, part in enumerate(parts)])
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.eq(1).all()
    assert second.grad.eq(2).all()
