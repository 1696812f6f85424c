"""Keeps what a run's rows are told in its folder, so that it is found out once.

The first worker finds it out and writes it; the others, and a run that is resumed, read it. So all of them
are told the same, to the last bit, and the teacher is asked once.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from student_client.records import config_digest
from student_client.whole_files import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from student_client.activity import Activity
    from student_client.batches import Examples
    from student_client.config import TrainConfig

__all__ = ["TOLD_FILE", "ToldFile", "told_key"]

TOLD_FILE = "told.safetensors"
_POLL_S = 0.2


class ToldFile:
    """The file of a run's folder, as one of its workers sees it.

    Args:
        folder: of the run; all workers see it.
        rank: this worker's number.
        activity: is told of waiting.
    """

    def __init__(self, folder: Path, rank: int, activity: Activity) -> None:
        self._folder = folder
        self._path = folder / TOLD_FILE
        self._rank = rank
        self._activity = activity

    def __call__(
        self, key: str, make: Callable[[], tuple[Tensor, dict[str, Any]]]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Returns outputs, [N, C], and facts: those that are kept under this key, or new ones.

        Only the first worker makes new ones. If it fails, Ray Train ends those that wait for it, too.

        Args:
            key: of all that decides them.
            make: finds them out.

        Raises:
            OSError: they can't be written; the error names the file.
            ValueError: the run's folder is not on this node.
        """
        kept = self._read(key)
        if kept is None and self._rank == 0:
            outputs, facts = make()
            self._write(key, outputs, facts)
            return outputs, facts
        with self._activity.now("waiting until the first worker knows what to tell the student"):
            while kept is None:
                time.sleep(_POLL_S)
                kept = self._read(key)
        return kept

    def _read(self, key: str) -> tuple[Tensor, dict[str, Any]] | None:
        if not self._folder.is_dir():
            raise ValueError(
                f"output: got {self._folder}, which is not on this node, expected one that all nodes share"
            )
        try:
            with safe_open(self._path, framework="pt") as file:
                said = file.metadata() or {}
                if said.get("key") != key:
                    return None
                return file.get_tensor("outputs"), json.loads(said["facts"])
        except (FileNotFoundError, SafetensorError):  # none, or one of a disk that lost a part of it
            return None

    def _write(self, key: str, outputs: Tensor, facts: dict[str, Any]) -> None:
        with whole_file(self._path) as aside:
            save_file({"outputs": outputs.contiguous()}, aside, {"key": key, "facts": json.dumps(facts)})


def told_key(config: TrainConfig, parts: Sequence[Examples], fingerprint: str) -> str:
    """Returns a digest of what decides what a run's rows are told.

    Args:
        config: of the run.
        parts: training, validation and test rows; their labels and number stand for them.
        fingerprint: of the teacher.
    """
    digest = hashlib.sha256(f"{config_digest(config)} {fingerprint}".encode())
    for part in parts:
        digest.update(str(len(part)).encode())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()
