"""Keeps two processes from writing one folder; the lock ends with the process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LOCK_FILE", "FolderLockedError", "folder_lock"]

LOCK_FILE = "lock"


class FolderLockedError(RuntimeError):
    """Another process has the folder."""


@contextlib.contextmanager
def folder_lock(folder: Path, message: str) -> Iterator[None]:
    """Has a folder for itself while open.

    Args:
        folder: made if it is not there.
        message: of the error.

    Raises:
        FolderLockedError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderLockedError(f"{folder}: {message}") from None
        yield
