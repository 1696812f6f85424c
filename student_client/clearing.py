"""Deletes an earlier run, once for each time that this is asked for."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from student_client.locks import LOCK_FILE
from student_client.whole_files import write_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["clear_run"]

_CLEARED_FILE = "cleared"


def clear_run(folder: Path, *, fresh: str | bool) -> None:
    """Deletes what is in a run's folder, but not the lock that is held on it.

    Args:
        folder: of the run.
        fresh: whether it is; a text names the wish, and where that was done already, nothing is.
    """
    cleared = folder / _CLEARED_FILE
    if not fresh or (cleared.exists() and cleared.read_text(encoding="utf-8") == fresh):
        return
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (LOCK_FILE, _CLEARED_FILE):
            path.unlink()
    if isinstance(fresh, str):  # last: whoever is killed before does it again
        write_text(cleared, fresh)
