"""Keeps what a run's rows are told in its folder, so that it is found out once.

The first worker finds it out and writes it; the others, and a run that is resumed, read it. So all of them
are told the same, to the last bit, and the teacher is asked by one of them, once.

Shapes: N rows, C outputs.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from student_client.checkpoints import check_shared
from student_client.records import config_digest
from student_client.whole_files import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        config: of the run.
        rank: this worker's number.
        activity: is told of waiting.
        writes: whether what is found out is kept; else it is for this once.
    """

    def __init__(self, config: TrainConfig, rank: int, activity: Activity, *, writes: bool = True) -> None:
        self._config = config
        self._path = config.folder / TOLD_FILE
        self._rank = rank
        self._activity = activity
        self._writes = writes

    def __call__(
        self,
        parts: Sequence[Examples],
        fingerprint: str,
        make: Callable[[], tuple[Tensor, dict[str, Any]]],
    ) -> tuple[Tensor, dict[str, Any]]:
        """Returns outputs, [N, C], and facts: those that are kept of these rows, or new ones.

        Only the first worker makes new ones. If it fails, Ray Train ends those that wait for it, too.

        Args:
            parts: training, validation and test rows.
            fingerprint: of the teacher.
            make: finds them out.

        Raises:
            OSError: they can't be written; the error names the file.
            ValueError: the run's folder is not on this node, or the first worker has other rows or another
                teacher.
        """
        key = told_key(self._config, parts, fingerprint)
        if not self._writes:
            return self._read(key) or make()
        check_shared(self._path.parent)
        kept = self._read(key)
        if kept is None and self._rank == 0:
            self._path.unlink(missing_ok=True)
            outputs, facts = make()
            self._write(key, outputs, facts)
            return outputs, facts
        return kept or self._awaited(key)

    def _awaited(self, key: str) -> tuple[Tensor, dict[str, Any]]:
        """Returns what the first worker writes, who takes a file away that does not fit."""
        wrong_since_s = None
        with self._activity.now("waiting until the first worker knows what to tell the student"):
            while (kept := self._read(key)) is None:
                now_s = time.monotonic()
                wrong_since_s = (wrong_since_s or now_s) if self._path.exists() else None
                if wrong_since_s is not None and now_s - wrong_since_s > self._config.peer_timeout_s:
                    raise ValueError(
                        f"data, teacher: {self._path} is of other rows or another teacher than this "
                        "worker's; expected the same tables on all nodes"
                    )
                time.sleep(_POLL_S)
        return kept

    def _read(self, key: str) -> tuple[Tensor, dict[str, Any]] | None:
        try:
            with safe_open(self._path, framework="pt") as file:
                said = file.metadata() or {}
                if said.get("key") != key:
                    return None
                # A copy: else it is the file that is read, all through the run.
                return file.get_tensor("outputs").clone(), json.loads(said["facts"])
        except (FileNotFoundError, SafetensorError):  # none, or one of a disk that lost a part of it
            return None

    def _write(self, key: str, outputs: Tensor, facts: dict[str, Any]) -> None:
        with whole_file(self._path) as aside:
            save_file({"outputs": outputs.contiguous()}, aside, {"key": key, "facts": json.dumps(facts)})


def told_key(config: TrainConfig, parts: Sequence[Examples], fingerprint: str) -> str:
    """Returns a digest of what decides what a run's rows are told.

    Args:
        config: of the run.
        parts: training, validation and test rows.
        fingerprint: of the teacher.
    """
    digest = hashlib.sha256(f"{config_digest(config)} {fingerprint}".encode())
    for part in parts:
        for name, tensor in (*sorted(part.student.items()), ("labels", part.labels)):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        digest.update(json.dumps(part.texts).encode())
    return digest.hexdigest()
