"""Tiny data sets in the formats of those that the study reads."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["MOVIES", "write_latest", "write_texts"]

NUM_USERS = 30
# Ids with gaps, as in the real one.
MOVIES = {7 * number: "Drama|Horror" if number % 2 else "Drama" for number in range(1, 21)}


def write_texts(folder: Path) -> None:
    """Writes TREC, 60 questions in latin-1, and banking77, 40."""
    trec = folder / "trec"
    trec.mkdir(parents=True)
    lines = [f"{'HUM:ind' if n % 3 else 'ENTY:other'} What is né {n} ?" for n in range(60)]
    (trec / "TREC.train").write_text("\n".join(lines) + "\n", "latin-1")
    (trec / "TREC.test").write_text("HUM:ind Who is it ?\n", "latin-1")
    banking = folder / "banking77"
    banking.mkdir()
    for name in ("train", "test"):
        rows = [[f'My "card", number {n}', "card" if n % 2 else "cash"] for n in range(40)]
        _write_csv(banking / f"{name}.csv", ["text", "category"], rows)


def write_latest(folder: Path) -> None:
    """Writes MovieLens latest-small: every user rated two thirds of the movies."""
    latest = folder / "ml-latest-small"
    latest.mkdir(parents=True)
    _write_csv(
        latest / "movies.csv",
        ["movieId", "title", "genres"],
        [[movie, f"A, {movie}", genres] for movie, genres in MOVIES.items()],
    )
    ratings = [
        [user, movie, (user + movie) % 3 * 2 + 0.5, 0, "", ""]
        for user in range(1, NUM_USERS + 1)
        for movie in MOVIES
        if (user + movie // 7) % 3
    ]
    _write_csv(latest / "ratings.csv", ["userId", "movieId", "rating", "timestamp", "", ""], ratings)


def _write_csv(path: Path, header: list[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
