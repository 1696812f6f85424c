"""The observation cache keeps to its budget, keeps no views, and knows rows by content."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.teacher.disk_tier import DiskTier
from services.teacher.observations import (
    ENTRY_BYTES,
    ObservationCache,
    entry_key,
    num_entry_bytes,
    row_digests,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

ENTRY = ENTRY_BYTES + 4  # of one float
INPUTS = {
    "input_ids": torch.tensor([[5, 6, 7, 0], [5, 6, 0, 0], [8, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool(),
}


def one(number: float) -> tuple[Tensor, ...]:
    return (torch.tensor([float(number)]),)


def put_numbers(cache: ObservationCache, *numbers: int) -> None:
    for number in numbers:
        cache.put(bytes([number]), one(number))


def test_what_was_put_is_found_and_counted() -> None:
    cache = ObservationCache(10 * ENTRY)
    value = (torch.randn(3, 2), torch.tensor([True, False]), torch.randn(2).bfloat16(), torch.zeros(0, 4))
    cache.put(b"a", value)
    found = cache.get(b"a")
    assert found is not None
    assert all(
        torch.equal(got, put) and got.dtype == put.dtype for got, put in zip(found, value, strict=True)
    )
    assert cache.get(b"b") is None
    assert (cache.num_hits, cache.num_misses, cache.num_disk_hits, len(cache)) == (1, 1, 0, 1)
    assert cache.num_bytes == num_entry_bytes(value) == ENTRY_BYTES + 24 + 2 + 4


def test_the_least_recently_used_goes_first() -> None:
    cache = ObservationCache(3 * ENTRY)
    put_numbers(cache, 1, 2, 3)
    assert cache.get(b"\1") is not None
    put_numbers(cache, 2)  # is there: only used
    put_numbers(cache, 4)
    assert [cache.get(bytes([number])) is not None for number in (1, 2, 3, 4)] == [True, True, False, True]


def test_a_view_of_a_batch_does_not_keep_the_batch() -> None:
    cache = ObservationCache(1 << 20)
    batch = torch.arange(4000.0).reshape(4, 1000)
    cache.put(b"row", (batch[2, :10], batch[:, 0]))
    batch.zero_()
    found = cache.get(b"row")
    assert found is not None
    assert found[0].tolist() == list(range(2000, 2010))
    assert found[1].tolist() == [0, 1000, 2000, 3000]
    assert [tensor.untyped_storage().nbytes() for tensor in found] == [40, 16]
    assert all(tensor.is_contiguous() for tensor in found)


def test_a_value_that_never_fits_is_not_kept_and_drives_nothing_out() -> None:
    cache = ObservationCache(2 * ENTRY)
    put_numbers(cache, 1, 2)
    cache.put(b"large", (torch.zeros(ENTRY),))
    assert cache.get(b"large") is None
    assert len(cache) == 2


def test_without_room_nothing_is_kept() -> None:
    cache = ObservationCache(0)
    put_numbers(cache, 1)
    assert cache.get(b"\1") is None
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_what_memory_lost_comes_back_from_disk(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, 1 << 20)
    cache = ObservationCache(ENTRY, disk)
    put_numbers(cache, 1, 2)
    found = cache.get(b"\1")
    assert found is not None
    assert found[0].tolist() == [1.0]
    assert (cache.num_hits, cache.num_disk_hits, len(cache)) == (1, 1, 1)
    assert cache.get(b"\1") is not None  # from memory now
    assert (cache.num_hits, cache.num_disk_hits) == (2, 1)
    cache.put(b"large", (torch.zeros(ENTRY),))
    assert cache.get(b"large") is not None
    cache.close()
    assert cache.get(b"large") is None
    assert cache.get(b"\1") is not None


@given(
    st.integers(0, 6 * ENTRY),
    st.lists(st.tuples(st.sampled_from(["get", "put"]), st.integers(0, 7)), max_size=60),
)
def test_it_behaves_like_a_simple_model_and_never_exceeds_its_budget(
    max_bytes: int, steps: list[tuple[str, int]]
) -> None:
    cache, model = ObservationCache(max_bytes), OrderedDict[int, int]()
    for action, number in steps:
        num_bytes = ENTRY_BYTES + 4 * 40 * number
        if action == "put":
            cache.put(bytes([number]), (torch.full((40 * number,), float(number)),))
            if number not in model and num_bytes <= max_bytes:
                while sum(model.values()) + num_bytes > max_bytes:
                    model.popitem(last=False)
                model[number] = num_bytes
        else:
            found = cache.get(bytes([number]))
            assert (found is not None) == (number in model)
            assert found is None or bool((found[0] == number).all())
        if number in model:
            model.move_to_end(number)
        assert cache.num_bytes == sum(model.values()) <= max_bytes
        assert len(cache) == len(model)


def test_threads_may_share_it() -> None:
    cache = ObservationCache(20 * ENTRY)
    wrong: list[object] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for number in torch.randint(0, 50, (400,), generator=generator).tolist():
            found = cache.get(bytes([number]))
            if found is None:
                put_numbers(cache, number)
            elif found[0].item() != number:
                wrong.append(found)
            if cache.num_bytes > 20 * ENTRY:
                wrong.append(cache.num_bytes)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.num_hits + cache.num_misses == 1600
    assert cache.num_bytes == ENTRY * len(cache) == 20 * ENTRY


def test_equal_rows_have_equal_digests_and_other_rows_have_others() -> None:
    first = row_digests(INPUTS)
    assert len(set(first)) == 3
    assert row_digests({name: tensor.flip(0) for name, tensor in INPUTS.items()}) == first[::-1]
    assert row_digests(dict(reversed(INPUTS.items()))) == first


def test_padding_for_the_sake_of_others_does_not_count() -> None:
    alone = {name: tensor[2:, :1] for name, tensor in INPUTS.items()}
    assert row_digests(alone) == row_digests(INPUTS)[2:]
    longer = {name: torch.nn.functional.pad(tensor, (0, 5), value=1) for name, tensor in INPUTS.items()}
    longer["attention_mask"][:, 4:] = False
    assert row_digests(longer) == row_digests(INPUTS)


def test_padding_counts_on_request() -> None:
    alone = {name: tensor[2:, :1] for name, tensor in INPUTS.items()}
    assert row_digests(alone, cut_padding=False) != row_digests(INPUTS, cut_padding=False)[2:]


def test_what_lies_before_the_last_valid_position_counts() -> None:
    left_padded = {
        "input_ids": torch.tensor([[0, 5], [1, 5]]),
        "attention_mask": torch.tensor([[0, 1]] * 2).bool(),
    }
    assert len(set(row_digests(left_padded))) == 2


def test_rows_without_a_valid_position_are_equal() -> None:
    mask = torch.zeros(2, 2, dtype=torch.bool)
    first, second = row_digests({"attention_mask": mask, "x": torch.randn(2, 2, 3)})
    assert first == second
    assert row_digests(
        {"attention_mask": torch.zeros(1, 0, dtype=torch.bool), "x": torch.zeros(1, 0, 3)}
    ) == [first]


@pytest.mark.parametrize(
    "other",
    [
        {"y": torch.tensor([[1, 2]])},
        {"x": torch.tensor([[1, 2]], dtype=torch.int32)},
        {"x": torch.tensor([[[1, 2]]])},
        {"x": torch.tensor([[1, 2, 0]])},
        {"x": torch.tensor([1])},
        {"x": torch.tensor([[1, 2]]), "y": torch.zeros(1, 0)},
    ],
)
def test_names_types_and_shapes_count(other: dict[str, Tensor]) -> None:
    assert row_digests({"x": torch.tensor([[1, 2]])}) != row_digests(other)


def test_any_layout_and_type_can_be_digested() -> None:
    states = torch.randn(3, 4).bfloat16()
    assert row_digests({"x": states.t().contiguous().t()}) == row_digests({"x": states})
    assert len(set(row_digests({"x": torch.tensor([1.0, 2.0, 3.0])}))) == 3
    assert len(row_digests({"x": torch.ones(1, 1).expand(4, 1)})) == 4
    assert row_digests({}) == []


@given(
    st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3), st.text(max_size=3), st.binary(max_size=3)))
)
def test_keys_are_equal_only_for_equal_parts(parts: list[tuple[str, str, str, bytes]]) -> None:
    assert len({entry_key(*each) for each in parts}) == len(set(parts))


def test_the_border_between_the_parts_of_a_key_counts() -> None:
    assert entry_key("ab", "c", "", b"") != entry_key("a", "bc", "", b"")
    assert entry_key("", "", "lower:3", b"x") != entry_key("", "", "lower:", b"3x")
    assert len(entry_key("tenant" * 1000, "f" * 64, "logits", bytes(20))) == 32
