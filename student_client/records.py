"""The files of a run: metrics, result, checkpoints, the student alone.

Results are written aside and renamed, metrics are appended line by line, Ray Train moves whole checkpoints:
a reader never takes half of one for the whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

    from student_client.config import TrainConfig

__all__ = [
    "CONFIG_FILE",
    "EXAMPLE_FILE",
    "METRICS_FILE",
    "RESULT_FILE",
    "STUDENT_FACTS_FILE",
    "STUDENT_FILE",
    "MetricsFile",
    "ResumeError",
    "as_any_file",
    "config_digest",
    "load_checkpoint",
    "read_metrics",
    "read_new_lines",
    "save_checkpoint",
    "write_json",
]

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
STUDENT_FILE = "student.safetensors"
STUDENT_FACTS_FILE = "student.json"
EXAMPLE_FILE = "example_inputs.safetensors"
_STATE = "state.pt"
_RNGS = ("rng", "cuda_rng")


class ResumeError(ValueError):
    """A checkpoint belongs to a run with another config or another teacher."""


def config_digest(config: TrainConfig) -> str:
    """Returns a digest of all that decides a run's course; where it runs and how often it saves do not."""
    free = {
        "accumulate",
        "checkpoint_every_epochs",
        "checkpoint_every_steps",
        "cpus_per_worker",
        "gpus_per_worker",
        "log_every_steps",
        "max_failures",
        "num_threads",
        "num_workers",
        "output",
        "peer_timeout_s",
        "tracking",
    }
    # Without defaults: a field that is new in a release changes no earlier run's digest.
    content = config.model_dump(mode="json", exclude={*free, "teacher", "python_path"}, exclude_defaults=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_checkpoint(folder: Path, state: dict[str, Any], digest: str, rank: int) -> None:
    """Writes a worker's checkpoint; the first worker's holds everything, the others' their RNGs."""
    content = {"digest": digest, **state} if rank == 0 else {name: state[name] for name in _RNGS}
    torch.save(content, folder / _name(rank))


def load_checkpoint(folder: Path, digest: str, rank: int) -> dict[str, Any]:
    """Reads a worker's checkpoint; a worker that had none gets None for its RNGs.

    Raises:
        ResumeError: it belongs to another config.
    """
    state: dict[str, Any] = torch.load(folder / _name(0), weights_only=True, map_location="cpu")
    if state.pop("digest") != digest:
        raise ResumeError(
            "the run's folder holds checkpoints of another config; choose another name or start it fresh"
        )
    if rank:
        own = folder / _name(rank)
        state |= torch.load(own, weights_only=True) if own.exists() else dict.fromkeys(_RNGS)
    return state


def _name(rank: int) -> str:
    return _STATE if rank == 0 else f"rng-{rank}.pt"


def as_any_file(path: Path) -> None:
    """Gives a file, which its writer made for one user alone, the mode of any new file here."""
    probe = path.with_name(f".{path.name}.mode")
    probe.touch()
    path.chmod(probe.stat().st_mode)
    probe.unlink()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    with aside.open("w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


class MetricsFile:
    """Appends one JSON object a line to a run's `metrics.jsonl`, for whoever watches."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS_FILE

    @property
    def is_new(self) -> bool:
        """Whether nothing was written to it yet."""
        return not (self._path.exists() and self._path.stat().st_size)

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line; a line of "kind" "resumed" takes back those of later steps than its "step"."""
        with self._path.open("ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # the last writer was killed in the middle of a line
                    file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics that still hold, without those before a resumption."""
    kept: list[dict[str, Any]] = []
    for line in read_new_lines(path, 0)[0]:
        if line["kind"] == "resumed":
            kept = [each for each in kept if each["step"] <= line["step"]]
        else:
            kept.append(line)
    return kept


def read_new_lines(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """Returns the whole lines of a metrics file from a position on, and the position after them.

    A line that its writer was killed in is passed over.
    """
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        content = file.read()
    end = content.rfind(b"\n") + 1
    lines = []
    for line in content[:end].splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines, position + end
