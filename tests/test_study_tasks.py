from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING

import pytest
import torch

from examples.movielens.data import split_ratings
from examples.study import sources, tables, tasks
from tests.toy_study_data import MOVIES, write_latest, write_texts

if TYPE_CHECKING:
    from pathlib import Path

REAL_DATA = os.environ.get(sources.DATA_VARIABLE)
LABELS = ["a", "b", "c", "d"] * 30


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny data sets in the formats of the real ones."""
    folder = tmp_path / "data"
    write_texts(folder)
    write_latest(folder)
    monkeypatch.setenv(sources.DATA_VARIABLE, str(folder))
    monkeypatch.setenv(sources.CACHE_VARIABLE, str(tmp_path / "cache"))
    return folder


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_share_has_as_many_rows_to_validate_as_to_learn_and_no_row_twice() -> None:
    share = tables.draw_share(LABELS, 20, seed=3)
    assert [len(rows) for rows in (share.train, share.valid, share.unlabelled)] == [20, 20, 80]
    rows = torch.cat([share.train, share.valid, share.unlabelled])
    assert sorted(rows.tolist()) == list(range(len(LABELS)))


def test_a_share_of_all_leaves_a_tenth_to_validate_and_nothing_unlabelled() -> None:
    share = tables.draw_share(LABELS, None, seed=0)
    assert [len(rows) for rows in (share.train, share.valid, share.unlabelled)] == [108, 12, 0]


def test_unlabelled_rows_can_be_fewer() -> None:
    share, whole = (tables.draw_share(LABELS, 20, seed=3, num_unlabelled=number) for number in (7, None))
    assert torch.equal(share.train, whole.train)
    assert len(share.unlabelled) == 7
    assert set(share.unlabelled.tolist()) < set(whole.unlabelled.tolist())


def test_no_more_than_500_rows_are_to_validate() -> None:
    share = tables.draw_share(["a", "b"] * 1000, 600, seed=0)
    assert [len(rows) for rows in (share.train, share.valid, share.unlabelled)] == [600, 500, 900]


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_learnt_however_few_labels_there_are(seed: int) -> None:
    labels = ["often"] * 100 + [f"rare {number}" for number in range(9)]
    share = tables.draw_share(labels, 10, seed=seed)
    assert len({labels[row] for row in share.train.tolist()}) == 10


def test_a_share_is_decided_by_its_seed() -> None:
    first, again, other = (tables.draw_share(LABELS, 20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train, again.train)
    assert torch.equal(first.valid, again.valid)
    assert set(first.train.tolist()) != set(other.train.tolist())


@pytest.mark.parametrize("num_labels", [3, 61])
def test_a_share_says_how_many_labels_there_can_be(num_labels: int) -> None:
    with pytest.raises(ValueError, match=f"num_labels: got {num_labels}, expected from 4"):
        tables.draw_share(LABELS, num_labels, seed=0)


def test_trec_is_its_coarse_classes(tmp_path: Path) -> None:
    tasks.trec(tmp_path / "t", num_labels=10, seed=0)
    train, rest = _read(tmp_path / "t" / "train.csv"), _read(tmp_path / "t" / "unlabelled.csv")
    assert len(train) == len(_read(tmp_path / "t" / "valid.csv")) == 10
    assert {row["label"] for row in train} == {"ENTY", "HUM"}
    assert all(row["text"].startswith("What is né ") for row in train)
    assert list(rest[0]) == ["text"]
    assert _read(tmp_path / "t" / "test.csv") == [{"text": "Who is it ?", "label": "HUM"}]


def test_banking77_has_texts_with_commas_and_quotes(tmp_path: Path) -> None:
    tasks.banking77(tmp_path / "t", num_labels=None, seed=0)
    train = _read(tmp_path / "t" / "train.csv")
    assert {row["label"] for row in train} == {"card", "cash"}
    assert all(row["text"].startswith('My "card", number ') for row in train)
    assert not (tmp_path / "t" / "unlabelled.csv").exists()


def test_a_task_written_again_is_the_same_and_leaves_no_rows_of_before(tmp_path: Path) -> None:
    tasks.trec(tmp_path / "t", num_labels=10, seed=0)
    before = {path.name: path.read_bytes() for path in (tmp_path / "t").iterdir()}
    tasks.trec(tmp_path / "t", num_labels=None, seed=0)
    assert not (tmp_path / "t" / "unlabelled.csv").exists()
    tasks.trec(tmp_path / "t", num_labels=10, seed=0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "t").iterdir()} == before


def test_missing_data_is_told_with_where_it_may_be_had(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_folder / "trec" / "TREC.test").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no TREC\.test, expected .*cogcomp"):
        tasks.trec(tmp_path / "t", num_labels=10, seed=0)
    monkeypatch.delenv(sources.DATA_VARIABLE)
    with pytest.raises(FileNotFoundError, match=r"PRECEPTOR_STUDY_DATA is not set.*grouplens"):
        tasks.movielens(tmp_path / "t", num_labels=10, seed=0, genre="Horror", dataset="latest-small")


def _pairs(path: Path) -> set[tuple[int, int]]:
    return {(int(row["user"]), int(row["item"])) for row in _read(path)}


def test_a_genres_ratings_are_of_the_teachers_parts_and_unlabelled_pairs_have_none(
    tmp_path: Path,
) -> None:
    tasks.movielens(tmp_path / "t", num_labels=40, seed=0, genre="Horror", dataset="latest-small")
    movies = sources.movielens("latest-small")
    split = split_ratings(movies.ratings)
    for name, part in (("train", split.train), ("valid", split.valid), ("test", split.test)):
        of_part = set(zip(part.user.tolist(), part.item.tolist(), strict=True))
        assert _pairs(tmp_path / "t" / f"{name}.csv") <= of_part
    assert len(_read(tmp_path / "t" / "train.csv")) == 40
    rated = set(zip(movies.ratings.user.tolist(), movies.ratings.item.tolist(), strict=True))
    unrated = _pairs(tmp_path / "t" / "unlabelled.csv")
    assert unrated
    assert not unrated & rated
    horror = movies.genres[:, movies.genre_names.index("Horror")] > 0
    assert all(horror[item] for _, item in unrated)


def test_latest_smalls_items_are_numbered_without_gaps() -> None:
    movies = sources.movielens("latest-small")
    assert movies.num_items == len(MOVIES)
    assert movies.genre_names == ("Drama", "Horror")
    assert movies.genres.sum(0).tolist() == [20, 10]
    assert set(movies.ratings.rating.tolist()) <= {0.5, 2.5, 4.5}


def test_a_movielens_task_says_what_it_does_not_have(tmp_path: Path) -> None:
    write = tmp_path / "t"
    with pytest.raises(ValueError, match="num_labels: got 9999"):
        tasks.movielens(write, num_labels=9999, seed=0, genre="Horror", dataset="latest-small")
    with pytest.raises(ValueError, match="genre: got 'Opera'"):
        tasks.movielens(write, num_labels=10, seed=0, genre="Opera", dataset="latest-small")
    with pytest.raises(ValueError, match="dataset: got '10m'"):
        tasks.movielens(write, num_labels=10, seed=0, genre="Horror", dataset="10m")  # type: ignore[arg-type]


@pytest.mark.skipif(REAL_DATA is None, reason="PRECEPTOR_STUDY_DATA names no folder with the real data sets")
def test_the_real_data_sets_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sources.DATA_VARIABLE, str(REAL_DATA))
    trec, banking77 = sources.trec(), sources.banking77()
    assert [len(trec.train["text"]), len(trec.test["text"]), len(set(trec.train["label"]))] == [5452, 500, 6]
    assert [len(banking77.train["text"]), len(banking77.test["text"])] == [10003, 3080]
    assert len(set(banking77.train["label"])) == 77
    movies = sources.movielens("latest-small")
    assert [len(movies.ratings), len(set(movies.ratings.user.tolist())), movies.num_items] == [
        100004,
        671,
        9125,
    ]
