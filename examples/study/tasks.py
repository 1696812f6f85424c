"""The study's tasks: each writes what one student has, as train.csv, valid.csv, test.csv and unlabelled.csv.

`num_labels` rows of a data set's training part are learnt, as many others (at most 500) choose the epoch, and
the rest, or `num_unlabelled` of it, is unlabelled; the test part is the same for all. The seed decides which
rows a student has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from examples.movielens.data import MovieLens, Ratings, split_ratings
from examples.study import sources
from examples.study.digits import Digits, Domain, load_digits, write_images
from examples.study.tables import MAX_VALID, draw_share, write_table, write_tables

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from examples.study.sources import Dataset, Texts

__all__ = ["banking77", "digits", "movielens", "trec"]


def trec(folder: Path, *, num_labels: int | None, seed: int, num_unlabelled: int | None = None) -> None:
    """Writes questions and the type of their answer, six classes: columns `text` and `label`.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: there are not so many labels.
    """
    _write_texts(folder, sources.trec(), num_labels, seed, num_unlabelled)


def banking77(folder: Path, *, num_labels: int | None, seed: int, num_unlabelled: int | None = None) -> None:
    """Writes questions to a bank and what they are about, 77 classes: columns `text` and `label`.

    Raises:
        FileNotFoundError, ValueError: as in `trec`.
    """
    _write_texts(folder, sources.banking77(), num_labels, seed, num_unlabelled)


def _write_texts(
    folder: Path, texts: Texts, num_labels: int | None, seed: int, num_unlabelled: int | None
) -> None:
    share = draw_share(texts.train["label"], num_labels, seed=seed, num_unlabelled=num_unlabelled)
    write_tables(folder, share, texts.train, texts.test)


def digits(folder: Path, *, num_labels: int | None, seed: int, domain: Domain) -> None:
    """Writes digits of a domain, ten classes: columns `image`, files in the cache, and `label`.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: there are not so many labels, or no such domain.
    """
    split = load_digits()

    def columns_of(part: Digits, cache: Path) -> dict[str, list[str]]:
        files = write_images(cache, part, domain)
        return {"image": files, "label": [str(label) for label in part.label.tolist()]}

    with sources.cache_folder("digits") as cache:
        train, test = (columns_of(part, cache) for part in (split.train, split.test))
    share = draw_share(train["label"], num_labels, seed=seed)
    write_tables(folder, share, train, test)


def movielens(
    folder: Path,
    *,
    num_labels: int | None,
    seed: int,
    genre: str,
    dataset: Dataset = "100k",
    num_unlabelled: int = 10_000,
) -> None:
    """Writes a genre's ratings, in stars: columns `user`, `item` and `rating`.

    The parts are those of the foundation recommender, so it has learnt none of the ratings to validate or to
    be tested on. Unlabelled are pairs of the genre's items with users who have not rated them.

    Raises:
        FetchError, FileNotFoundError: the data set is not there.
        ValueError: there are not so many ratings, or no such genre.
    """
    movies = sources.movielens(dataset)
    split = split_ratings(movies.ratings)
    generator = torch.Generator().manual_seed(seed)

    def draw(part: Ratings, wanted: int | None) -> Ratings:
        found = part.select(movies.has_genre(part, genre))
        if wanted is not None and wanted > len(found):
            raise ValueError(f"num_labels: got {wanted}, expected at most {len(found)}, {genre}'s ratings")
        return found.select(torch.randperm(len(found), generator=generator)[:wanted])

    train = draw(split.train, num_labels)
    of_valid = split.valid.select(movies.has_genre(split.valid, genre))
    valid = draw(of_valid, min(MAX_VALID, len(train), len(of_valid)))
    test = split.test.select(movies.has_genre(split.test, genre))
    for name, part in (("train", train), ("valid", valid), ("test", test)):
        columns = {"user": part.user.tolist(), "item": part.item.tolist(), "rating": part.rating.tolist()}
        write_table(folder / f"{name}.csv", columns)
    user, item = _unrated(movies, genre, num_unlabelled, generator)
    write_table(folder / "unlabelled.csv", {"user": user.tolist(), "item": item.tolist()})


def _unrated(movies: MovieLens, genre: str, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws pairs of users and a genre's items without a rating in any part; both [n], int64."""
    ratings = movies.ratings
    items = torch.unique(ratings.item[movies.has_genre(ratings, genre)])
    is_free = torch.ones(movies.num_users, movies.num_items, dtype=torch.bool)
    is_free[ratings.user, ratings.item] = False
    users = torch.unique(ratings.user)
    pairs = is_free[users][:, items].nonzero()
    drawn = pairs[torch.randperm(len(pairs), generator=generator)[:number]]
    return users[drawn[:, 0]], items[drawn[:, 1]]
