"""The teacher reads a row once, whatever batch and padding it comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from services.teacher.config import ServiceConfig
from services.teacher.families import load_teacher
from services.teacher.families.base import UnsupportedError
from services.teacher.observations import ObservationCache
from services.teacher.own_reading import LOGITS, LOWER, POOLED, UPPER, OwnReading, Reader, ReadingRequest
from tests.toy import WatchedTeacher
from tests.toy_turns import (
    FAMILIES,
    assert_close,
    inputs_of,
    teacher_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from services.teacher.families.base import Teacher

ALL = frozenset({LOWER, UPPER, POOLED, LOGITS})


class _Reads:
    """A reader of a teacher, and the shapes that the teacher's lower part was given."""

    def __init__(self, teacher: Teacher, *, max_bytes: int = 1 << 24, max_batch_tokens: int = 10_000) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.cache = ObservationCache(max_bytes)
        self._reader = Reader(self._watch(teacher), self.cache, max_batch_tokens)

    def _watch(self, teacher: Teacher) -> Teacher:
        watched = WatchedTeacher(teacher)

        def lower(inputs: Mapping[str, Tensor], s: int) -> object:
            self.shapes.append(tuple(next(iter(inputs.values())).shape))
            return teacher.lower(inputs, s)

        watched.lower = lower  # type: ignore[attr-defined]
        return watched

    def read(self, *requests: ReadingRequest) -> list[OwnReading]:
        return self._reader.read(requests)


def _request(
    inputs: Mapping[str, Tensor],
    parts: frozenset[str] = ALL,
    *,
    split_layer: int = 1,
    scope: str = "tenant",
    whole: bool = False,
) -> ReadingRequest:
    return ReadingRequest(inputs, parts, split_layer, scope, whole)


def _rows(inputs: Mapping[str, Tensor], *indices: int) -> dict[str, Tensor]:
    return {name: tensor[list(indices)] for name, tensor in inputs.items()}


def _assert_reads(teacher: Teacher, request: ReadingRequest, got: OwnReading) -> None:
    """Holds a reading against the teacher's own; states count where they are valid."""
    (expected,) = Reader(teacher, None, 10_000).read([request])
    assert got.states.keys() == expected.states.keys()
    assert got.vectors.keys() == expected.vectors.keys()
    for part, states in expected.states.items():
        assert torch.equal(got.states[part].mask, states.mask)
        assert_close(got.states[part].hidden_states[states.mask], states.hidden_states[states.mask])
    for part, vector in expected.vectors.items():
        assert_close(got.vectors[part], vector)


@pytest.mark.parametrize("kind", ["classifier", "decoder", "module"])
def test_every_part_is_read_and_found_again(kind: str) -> None:
    teacher = teacher_of(kind)
    reads = _Reads(teacher)
    for part in (*sorted(ALL), None):
        request = _request(inputs_of(teacher, (5, 3, 4)), ALL if part is None else frozenset({part}))
        for num_cached in (3 if part is None else 0, 3):
            (got,) = reads.read(request)
            assert got.num_cached_rows == num_cached
            _assert_reads(teacher, request, got)
    assert len(reads.shapes) == 4


@pytest.mark.parametrize("kind", ["classifier", "decoder"])
def test_rows_are_found_by_content_whatever_the_padding_and_batch(kind: str) -> None:
    teacher = teacher_of(kind)
    reads = _Reads(teacher)
    inputs = inputs_of(teacher, (5, 3, 4))
    reads.read(_request(inputs))
    wider = {name: nn.functional.pad(tensor, (0, 4)) for name, tensor in inputs.items()}
    wider["input_ids"][1, 5:] = 9  # what stands where nothing is valid does not count
    for again in (wider, _rows(wider, 2, 0), _rows(inputs, 1), _rows(inputs, 1, 1)):
        request = _request(again)
        (got,) = reads.read(request)
        assert got.num_cached_rows == len(again["input_ids"])
        _assert_reads(teacher, request, got)
    assert len(reads.shapes) == 1


def test_only_what_is_missing_is_computed_and_requests_share_it() -> None:
    teacher = teacher_of("classifier")
    reads = _Reads(teacher)
    inputs = inputs_of(teacher, (5, 3, 4, 2))
    reads.read(_request(_rows(inputs, 0, 1)))
    requests = [_request(_rows(inputs, 0, 2)), _request(_rows(inputs, 3, 1, 0)), _request(_rows(inputs, 2))]
    results = reads.read(*requests)
    assert [result.num_cached_rows for result in results] == [1, 2, 0]
    assert reads.shapes == [(2, 5), (3, 4)]  # cut to the longest row that is missing
    for request, result in zip(requests, results, strict=True):
        _assert_reads(teacher, request, result)


def test_a_row_that_lacks_a_part_is_read_again() -> None:
    reads = _Reads(teacher_of("classifier"))
    inputs = inputs_of(teacher_of("classifier"), (5, 3))
    reads.read(_request(inputs, frozenset({LOWER})))
    (both,) = reads.read(_request(inputs, frozenset({LOWER, POOLED})))
    (lower,) = reads.read(_request(inputs, frozenset({LOWER})))
    assert (both.num_cached_rows, lower.num_cached_rows) == (0, 2)


def test_lower_states_are_kept_by_talking_layer_and_the_rest_is_not() -> None:
    teacher = teacher_of("classifier")
    reads = _Reads(teacher)
    inputs = inputs_of(teacher, (5, 3))
    reads.read(_request(inputs))
    for parts, num_cached in ((frozenset({LOWER}), 0), (frozenset({POOLED, UPPER, LOGITS}), 2)):
        request = _request(inputs, parts, split_layer=2)
        (got,) = reads.read(request)
        assert got.num_cached_rows == num_cached
        _assert_reads(teacher, request, got)


def test_a_tenant_does_not_find_what_was_read_for_another() -> None:
    reads = _Reads(teacher_of("classifier"))
    inputs = inputs_of(teacher_of("classifier"), (5, 3))
    found = [reads.read(_request(inputs, scope=scope))[0].num_cached_rows for scope in "abab"]
    assert found == [0, 0, 2, 2]


def test_passes_of_reading_stay_under_the_budget_and_pad_little() -> None:
    teacher = teacher_of("classifier")
    reads = _Reads(teacher, max_batch_tokens=20)
    request = _request(inputs_of(teacher, (10, 2, 9, 2, 3, 2)))
    (got,) = reads.read(request)
    assert sorted(reads.shapes) == [(2, 10), (4, 3)]
    _assert_reads(teacher, request, got)
    long = _request(inputs_of(teacher, (22, 3, 21), seed=1))
    reads.shapes.clear()
    _assert_reads(teacher, long, reads.read(long)[0])
    assert sorted(reads.shapes) == [(1, 3), (1, 21), (1, 22)]


@pytest.mark.parametrize("max_bytes", [0, 1500])
def test_without_room_in_the_cache_everything_is_read_again(max_bytes: int) -> None:
    teacher = teacher_of("classifier")
    reads = _Reads(teacher, max_bytes=max_bytes)
    request = _request(inputs_of(teacher, (5, 3, 4)))
    for _ in range(2):
        (got,) = reads.read(request)
        _assert_reads(teacher, request, got)
    assert got.num_cached_rows < 3
    assert reads.cache.num_bytes <= max_bytes


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_whole_turn_is_kept_bit_for_bit_and_by_itself(kind: str) -> None:
    teacher = teacher_of(kind)
    reads = _Reads(teacher)
    inputs = inputs_of(teacher, (5, 3, 4))
    parts = ALL - {LOGITS}
    (expected,) = Reader(teacher, None, 10_000).read([_request(inputs, parts, whole=True)])
    others = _request(inputs_of(teacher, (5, 5), seed=1), parts)
    for num_cached in (0, 3):
        got, _ = reads.read(_request(inputs, parts, whole=True), others)
        assert got.num_cached_rows == num_cached
        for part, states in expected.states.items():
            assert torch.equal(got.states[part].hidden_states, states.hidden_states)
            assert torch.equal(got.states[part].mask, states.mask)
        assert torch.equal(got.vectors[POOLED], expected.vectors[POOLED])
    assert [reads.read(_request(_rows(inputs, *rows), parts, whole=True))[0].num_cached_rows
            for rows in ((0, 1), (1, 0, 2), (0, 1, 2))] == [0, 0, 3]  # fmt: skip


def test_a_whole_turn_shares_nothing_with_row_by_row_reading() -> None:
    teacher = teacher_of("classifier")
    reads = _Reads(teacher)
    inputs = inputs_of(teacher, (5, 3))
    reads.read(_request(inputs))
    assert reads.read(_request(inputs, whole=True))[0].num_cached_rows == 0
    wider = {name: nn.functional.pad(tensor, (0, 1)) for name, tensor in inputs.items()}
    assert reads.read(_request(wider, whole=True))[0].num_cached_rows == 0
    assert reads.read(_request(wider, whole=True))[0].num_cached_rows == 2


def test_a_module_reads_rows_of_other_shapes_apart() -> None:
    teacher = teacher_of("module")
    reads = _Reads(teacher)
    requests = [_request({"ids": inputs_of(teacher, lengths, seed=seed)["ids"]})
                for seed, lengths in enumerate([(4, 4), (6,), (4,)])]  # fmt: skip
    results = reads.read(*requests)
    assert sorted(reads.shapes) == [(1, 6), (3, 4)]
    for request, result in zip(requests, results, strict=True):
        _assert_reads(teacher, request, result)
    assert [result.num_cached_rows for result in reads.read(*requests)] == [2, 1, 1]


class _MaskReader(nn.Module):
    """Sums ids over the positions of a mask of its own, and mixes all positions in its block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = _MaskEmbed()
        self.blocks = nn.ModuleList([_Mean()])


class _MaskEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 4)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.table(ids) + attention_mask[..., None]
        return states


class _Mean(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + hidden_states.mean(1, keepdim=True)


def test_a_modules_own_attention_mask_is_no_padding(tmp_path: Path) -> None:
    save_file(_MaskReader().state_dict(), tmp_path / "w.safetensors")
    model = {
        "family": "module",
        "factory": f"{__name__}:_MaskReader",
        "weights": tmp_path / "w.safetensors",
        "head": None,
        "inputs": {"ids": "int64[*,*]<32", "attention_mask": "bool[*,*]"},
    }
    config = ServiceConfig.model_validate({"auth": "none", "model": model})
    teacher = load_teacher(config, torch.device("cpu"), torch.float32)
    ids = torch.arange(8).reshape(2, 4)
    inputs = {"ids": ids, "attention_mask": torch.tensor([[True, False, True, False], [True] * 4])}
    reads = _Reads(teacher)
    request = _request(inputs, ALL - {LOGITS})
    for num_cached in (0, 2):
        (got,) = reads.read(request)
        assert got.num_cached_rows == num_cached
        _assert_reads(teacher, request, got)
    other = {**inputs, "ids": ids.index_fill(1, torch.tensor([3]), 9)}
    assert reads.read(_request(other, ALL - {LOGITS}))[0].num_cached_rows == 0


def test_logits_of_a_teacher_without_a_head_are_refused(headless_teacher: Teacher) -> None:
    request = _request({"ids": torch.ones(1, 4, dtype=torch.long)}, frozenset({LOGITS}))
    for reader in (
        Reader(headless_teacher, None, 100),
        Reader(headless_teacher, ObservationCache(1000), 100),
    ):
        with pytest.raises(UnsupportedError, match="logits"):
            reader.read([request])


def test_readings_carry_no_graph_and_callers_can_not_spoil_what_is_kept() -> None:
    teacher = teacher_of("classifier")
    reads = _Reads(teacher)
    request = _request(inputs_of(teacher, (5, 3)))
    for _ in range(2):
        (got,) = reads.read(request)
        assert not any(states.hidden_states.requires_grad for states in got.states.values())
        assert not any(vector.requires_grad for vector in got.vectors.values())
        got.states[LOWER].hidden_states.zero_()
        got.vectors[POOLED].zero_()
    _assert_reads(teacher, request, reads.read(request)[0])
