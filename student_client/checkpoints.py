"""The checkpoints of a run: a folder for each step, with a file of each worker.

They are not handed to Ray Train, which copies their files and rewrites its list of them in place: a disk that
is full, or a process that is killed, in the middle of that leaves a run that can't be started again.
"""

from __future__ import annotations

import errno
import pickle
import re
import shutil
from typing import TYPE_CHECKING, Any

import torch

from student_client.whole_files import whole_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Checkpoints", "ResumeError", "check_shared"]

_NAME = re.compile(r"checkpoint_(\d+)")
_STATE = "state.pt"
_RNGS = ("rng", "cuda_rng")
_NUM_KEPT = 2
# What torch says of a file that is cut off or is no checkpoint; also OSError with EINVAL.
_BROKEN = (RuntimeError, EOFError, KeyError, pickle.UnpicklingError)


class ResumeError(ValueError):
    """A checkpoint belongs to a run with another config or another teacher, or none can be read."""


class Checkpoints:
    """A run's checkpoints, as one of its workers sees them.

    The first worker's file holds everything, the others' their RNGs. Each is written whole or not at all, so
    a checkpoint is whole when there are as many files as the first one says that there were workers.

    Args:
        folder: of the run.
        digest: of its config.
        rank: this worker's number.
        world_size: workers.

    Attributes:
        passed_over: names of those that were not whole when they were to be loaded.
    """

    def __init__(self, folder: Path, digest: str, *, rank: int = 0, world_size: int = 1) -> None:
        self.passed_over: list[str] = []
        self._folder = folder
        self._digest = digest
        self._rank = rank
        self._world_size = world_size
        self._whole: list[Path] = []

    def load(self) -> dict[str, Any] | None:
        """Returns the newest whole checkpoint, if there is one; a worker it does not know has None for RNGs.

        Raises:
            ResumeError: it belongs to another config, or what is there can't be read.
            ValueError: the run's folder is not on this node.
        """
        check_shared(self._folder)
        broken: Exception | None = None
        for folder in sorted(self._all(), key=_step, reverse=True):
            try:
                state = self._read(folder)
            except FileNotFoundError:  # a worker, or the driver, was killed before all had written
                self.passed_over.append(folder.name)
            except (OSError, *_BROKEN) as error:
                if isinstance(error, OSError) and error.errno != errno.EINVAL:
                    raise
                broken = error
                self.passed_over.append(folder.name)
            else:
                self._whole = [folder]
                return state
        if broken is not None:  # nothing that we do makes all of them so
            raise ResumeError(
                f"{self._folder}: none of its checkpoints can be read ({broken}); start it fresh"
            ) from broken
        return None

    def _read(self, folder: Path) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(folder / _file_of(0), weights_only=True, map_location="cpu")
        if state.pop("digest") != self._digest:
            raise ResumeError(
                f"{folder}: is a checkpoint of another config; choose another name or start it fresh"
            )
        # Every worker reads all files, so that all of them take the same checkpoint.
        ranks = range(1, state.pop("world_size"))
        others = {rank: torch.load(folder / _file_of(rank), weights_only=True) for rank in ranks}
        if self._rank:
            state |= others.get(self._rank, dict.fromkeys(_RNGS))
        return state

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes this worker's part of a checkpoint.

        Raises:
            OSError: it can't be written; the error names the file.
        """
        folder = self._folder / f"checkpoint_{step:09}"
        if self._rank:
            content = {name: state[name] for name in _RNGS}
        else:
            content = {"digest": self._digest, "world_size": self._world_size, **state}
        # A path would hide from us why torch can't write it.
        with whole_file(folder / _file_of(self._rank)) as aside, aside.open("wb") as file:
            torch.save(content, file)
        self._whole = [*self._whole, folder][-_NUM_KEPT:]

    def forget_older(self) -> None:
        """Deletes those before the last two; for one worker, when all have saved theirs."""
        for folder in self._all():
            if folder not in self._whole and _step(folder) < _step(self._whole[-1]):
                shutil.rmtree(folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]


def check_shared(folder: Path) -> None:
    """Makes sure that a run's folder, which the driver has made, is on this node.

    Raises:
        ValueError: it is not.
    """
    if not folder.is_dir():
        raise ValueError(
            f"output: got {folder}, which is not on this node, expected one that all nodes share"
        )


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("_")[2])


def _file_of(rank: int) -> str:
    return _STATE if rank == 0 else f"rng-{rank}.pt"
