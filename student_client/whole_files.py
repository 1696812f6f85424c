"""Writes files whole or not at all, whatever happens to disk, process or machine in the middle.

What is written lies beside its place until it is on the disk, and is renamed then.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["put_folder", "whole_file", "write_json", "write_text", "writing"]

_ASIDE = ".part-"
_NUM_RANDOM = 8
_OS_ERROR = re.compile(r"\bos error (\d+)\b")  # how Rust, so safetensors, tells of one
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of file systems that can't sync a folder


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields where to write a file, which takes its place once it is written and on the disk.

    Raises:
        OSError: it can't be written; it is named, and what was in its place still is.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{_ASIDE}{'?' * _NUM_RANDOM}-{glob.escape(path.name)}"):
            left.unlink(missing_ok=True)  # its writer was killed
        # The name ends as it should: some writers go by it.
        aside = path.with_name(f"{_ASIDE}{uuid.uuid4().hex[:_NUM_RANDOM]}-{path.name}")
        try:
            aside.touch()
            mode = aside.stat().st_mode
            yield aside
            aside.chmod(mode)  # some writers make files for one user alone
            _sync(aside)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Has what fails while open say which file could not be written; few writers say it themselves."""
    try:
        yield
    except Exception as error:
        number = _number_of(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _number_of(error: BaseException | None) -> int | None:
    """Returns the number of the operating system's error that an error is, tells of or, as torch's, hides."""
    if isinstance(error, OSError):
        return error.errno
    if match := _OS_ERROR.search(str(error)):
        return int(match[1])
    return _number_of(error.__context__) if isinstance(error, RuntimeError) else None


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one piece."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file in one piece."""
    write_text(path, json.dumps(content, indent=2))


def put_folder(folder: Path, place: Path) -> None:
    """Moves a folder, once all of it is on the disk, to a place; what was there takes the folder's.

    Whoever is killed between has left what was there beside it, as NAME-before-RANDOM.

    Raises:
        OSError: it can't be moved; what was there still is.
    """
    for path in (*folder.rglob("*"), folder):
        _sync(path)
    if not place.exists():
        folder.replace(place)
    else:
        before = place.with_name(f"{place.name}-before-{uuid.uuid4().hex[:_NUM_RANDOM]}")
        place.replace(before)
        try:
            folder.replace(place)
        except BaseException:
            before.replace(place)
            raise
        before.replace(folder)
    _sync(place.parent)


def _sync(path: Path) -> None:
    """Has a file, or the names in a folder, survive a loss of power."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(number)
