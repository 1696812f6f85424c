"""Streams through Ray Data: every row once, the same batches for any number of workers, exact resume."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest
import ray
import torch

from student_client import streaming
from student_client.data import Batch, DataError, ExampleSource, load_splits
from student_client.data_config import DataConfig
from tests.test_data import ROWS, write_images, write_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield
    ray.shutdown()


def open_stream(source: Path, **fields: Any) -> ExampleSource:
    path = str(source)
    content = {"task": "classification", "text": "text", "features": {"n": "int64"}, **fields}
    config = DataConfig(train=path, valid=path, test=path, stream=True, shuffle_rows=16, **content)
    return load_splits(config).train


def numbers(batches: Iterator[Batch], name: str = "n") -> list[list[int]]:
    return [batch.student[name].tolist() for batch in batches]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        write_rows(tmp_path / f"{number}.csv", ROWS[14 * number :][:14])
    return tmp_path


def test_an_epoch_has_every_row_once_in_an_order_of_seed_and_epoch(folder: Path) -> None:
    stream = open_stream(folder)
    assert len(stream) == len(ROWS)
    first = numbers(stream.shuffled(8, seed=1, epoch=0))
    assert [len(batch) for batch in first] == [8] * 5
    assert sorted(itertools.chain(*first)) == list(range(40))
    assert numbers(stream.shuffled(8, seed=1, epoch=0)) == first
    assert numbers(stream.shuffled(8, seed=1, epoch=1)) != first
    assert numbers(stream.shuffled(8, seed=2, epoch=0)) != first


def test_two_workers_share_the_batches_of_one_and_a_resumed_epoch_goes_on(folder: Path) -> None:
    stream = open_stream(folder)
    expected = numbers(stream.shuffled(12, seed=0, epoch=0))
    shares = [numbers(stream.shuffled(12, seed=0, epoch=0, rank=rank, world_size=2)) for rank in range(2)]
    for batch, first, second in zip(expected, *shares, strict=True):
        assert (first, second) == (batch[0::2], batch[1::2])
    for done in (1, 3):
        assert numbers(stream.shuffled(12, seed=0, epoch=0, first_batch=done)) == expected[done:]
    # The last batch has four rows.
    (last,) = numbers(stream.shuffled(12, seed=0, epoch=0, rank=5, world_size=6, first_batch=3))
    assert last == [expected[3][1]]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.jsonl", "on_disk"])
def test_a_stream_has_the_rows_that_are_read_whole(tmp_path: Path, name: str) -> None:
    source = write_rows(tmp_path / name)
    stream = open_stream(source)
    config = DataConfig(
        train=str(source),
        valid=str(source),
        test=str(source),
        task="classification",
        text="text",
        features={"n": "int64"},
    )
    read = load_splits(config).valid
    for got, expected in zip(stream.batches(15), read.batches(15), strict=True):
        assert got.teacher == expected.teacher
        assert torch.equal(got.labels, expected.labels)
        for key, tensor in expected.student.items():
            assert torch.equal(got.student[key], tensor)


def test_images_stream_too(tmp_path: Path) -> None:
    source = write_images(tmp_path)
    stream = open_stream(source, text=None, features={}, image="image", image_size=2)
    (batch,) = stream.batches(4)
    assert batch.student["pixel_values"].shape == (4, 3, 2, 2)
    assert batch.labels.tolist() == [0, 0, 1, 1]


def test_tags_stream_too(tmp_path: Path) -> None:
    rows = [{"words": ["a", "b"], "label": ["X", "Y"]}, {"words": ["c"], "label": ["Y"]}]
    source = write_rows(tmp_path / "t.parquet", rows)
    stream = open_stream(source, text=None, features={}, task="tokens", words="words")
    (batch,) = stream.batches(2)
    assert batch.labels.tolist() == [[0, 1], [1, -100]]


def test_a_stream_that_is_left_early_ends_its_thread(folder: Path) -> None:
    batches = open_stream(folder).shuffled(4, seed=0, epoch=0)
    assert next(batches).labels.shape == (4,)
    batches.close()  # type: ignore[attr-defined]
    assert "prepare-batches" not in {thread.name for thread in threading.enumerate()}


def test_a_stream_that_brings_nothing_is_waited_for_so_long_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "_BATCH_TIMEOUT_S", 0.05)
    monkeypatch.setattr(streaming, "_END_TIMEOUT_S", 0.05)
    ended = threading.Event()

    def hang() -> Iterator[Batch]:
        ended.wait()
        yield from ()

    with pytest.raises(DataError, match=r"no batch within 0\.05 s; does Ray have CPUs"):
        next(streaming._ahead(hang()))
    ended.set()


def test_a_wrong_stream_is_told_by_file_and_value(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "t.csv", [*ROWS, {"text": "", "n": 40, "label": "odd"}])
    good = write_rows(tmp_path / "good.csv")
    fields: dict[str, Any] = {"valid": str(good), "test": str(good), "task": "classification", "stream": True}
    stream = load_splits(DataConfig(train=str(source), text="text", **fields)).train
    with pytest.raises(DataError, match=r"t\.csv.*got no value in \['text'\]"):
        list(stream.shuffled(8, seed=0, epoch=0))
    with pytest.raises(DataError, match=r"t\.csv: got columns .* expected \['missing'\]"):
        load_splits(DataConfig(train=str(source), text="missing", **fields))
