"""Do several data-parallel workers learn what one learns?

    python -m benchmarks.ddp

Serves MiniLM with Ray Serve, then trains the student of `examples/text` twice with Ray Train: with one worker
and with two, each with a conversation of its own, on the same batches, in deterministic mode and without
dropout (workers draw their own). Compares all that was trained, student and codec, and the speed. Prints a
table and, as its last line, one JSON object.

The speed is that of one machine whose cores the workers, the teacher and Ray share: on two cores a second
worker has little to gain.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import teachers
from benchmarks.reference import relative_error
from benchmarks.texts import write_tables
from services.teacher.local import serving
from student_client.config import TrainConfig
from student_client.records import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.texts import Tables

__all__ = ["last_state", "worst_difference"]

_EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "text" / "talk.yaml"


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ddp", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3, help="of each run")
    parser.add_argument("--num-train", type=int, default=500, help="training texts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    with tempfile.TemporaryDirectory() as name, serving(teachers.encoder(teachers.free_port())) as address:
        folder = Path(name)
        tables = write_tables(folder, num_train=options.num_train, num_valid=64, num_test=64)
        folders = {
            num_workers: _train(tables, folder, address, num_workers, options.epochs)
            for num_workers in (1, 2)
        }
        states = {num_workers: last_state(folder) for num_workers, folder in folders.items()}
        speeds = {num_workers: _examples_per_s(folder) for num_workers, folder in folders.items()}
    difference = worst_difference(states[2], states[1])
    worst = max(states[1], key=lambda name: relative_error(states[2][name], states[1][name]))
    table = Table(title=f"MiniLM, {tables.source}, {options.num_train} texts, {options.epochs} epochs")
    for column in ("workers", "examples/s", "largest relative difference of a weight"):
        table.add_column(column, justify="right")
    for num_workers, speed in speeds.items():
        table.add_row(str(num_workers), f"{speed:.1f}", "" if num_workers == 1 else f"{difference:.2e}")
    Console().print(table)
    Console().print(f"the weight that differs most: {worst}")
    result = {
        "max_rel_weight_diff": difference,
        "examples_per_s_1": round(speeds[1], 2),
        "examples_per_s_2": round(speeds[2], 2),
    }
    print(json.dumps(result))
    return 0


def _train(tables: Tables, folder: Path, address: str, num_workers: int, epochs: int) -> Path:
    """Trains with so many workers; returns the run's folder."""
    from student_client.train import train

    print(f"training with {num_workers} worker(s)", file=sys.stderr, flush=True)
    changes: dict[str, Any] = {
        "name": f"workers-{num_workers}",
        "output": folder / "runs",
        "epochs": epochs,
        "num_workers": num_workers,
        "cpus_per_worker": 0.5,
        "log_every_steps": 4,
        "keep": "last",
        "teacher.address": address,
        "talk.deterministic": True,
        "student.kwargs.dropout": 0.0,
        "data.train": str(tables.train),
        "data.valid": str(tables.valid),
        "data.test": str(tables.test),
    }
    return train(TrainConfig.load(_EXAMPLE, changes)).folder


def last_state(folder: Path) -> dict[str, Tensor]:
    """Returns student and codec of a run's last checkpoint."""
    path = max(folder.glob("checkpoint_*/state.pt"))
    state: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")["objective"]
    return state


def worst_difference(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Returns the largest relative difference of a tensor, max |got - expected| / max |expected|."""
    if got.keys() != expected.keys():
        raise ValueError(f"got {sorted(got)}, expected {sorted(expected)}")
    floating = [name for name, tensor in expected.items() if tensor.is_floating_point()]
    return max(relative_error(got[name], expected[name]) for name in floating)


def _examples_per_s(folder: Path) -> float:
    lines = read_metrics(folder / METRICS_FILE)
    speeds = [float(line["examples_per_s"]) for line in lines if line["kind"] == "steps"]
    return statistics.median(speeds[1:] or speeds)


if __name__ == "__main__":
    sys.exit(main())
