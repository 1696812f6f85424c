"""What does a fleet against shared teachers cost, and does it change what is learnt?

    python -m benchmarks.fleet

Eight students: four of MovieLens genres, taught by the foundation recommender of `examples/movielens`, and
four of texts, taught by MiniLM. First one after another, each in a process with a teacher of its own, without
Ray. Then as a fleet, four at a time, with `preceptor fleet` on a Ray of its own, against two served teachers,
each `preceptor serve` on its own Ray. Everything is deterministic, so both ways must learn the same weights.
Prints a table and, as its last line, one JSON object.

Wall time is that of the commands: the students' processes with their teachers, and `preceptor fleet` with
its Ray; the served teachers are up before. Memory is the largest proportional set size (PSS) of all processes
of a way, the served teachers and all of Ray's included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks import teachers
from benchmarks.ddp import last_state, worst_difference
from benchmarks.memory import PeakMemory
from benchmarks.texts import write_tables
from examples.movielens import demo
from examples.movielens.data import fetch, read, split_ratings
from examples.movielens.foundation import train_foundation
from services.teacher.local import wait_until_ready
from student_client.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.teacher.config import ServiceConfig

_ROOT = Path(__file__).resolve().parents[1]
_EXAMPLE = _ROOT / "examples" / "text" / "talk.yaml"
_GENRES = ("Horror", "Sci-Fi", "Children's", "Mystery")
_READY_TIMEOUT_S = 180.0
_PARALLELISM = 4
_PRECEPTOR = str(Path(sys.executable).with_name("preceptor"))


@dataclass(frozen=True)
class _Student:
    """A student's run and the teacher it needs."""

    config: TrainConfig
    service: ServiceConfig


@dataclass(frozen=True)
class _Outcome:
    """What one way took, and where each student's weights are by name."""

    seconds: float
    peak_bytes: int
    states: dict[str, dict[str, torch.Tensor]]


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache/movielens"), help="data and weights")
    parser.add_argument("--epochs", type=int, default=6, help="of each student")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        students = [
            *_recommenders(folder, options.cache.resolve(), options.epochs),
            *_text_students(folder, options.epochs),
        ]
        solo = _solo(students, folder)
        fleet = _fleet(students, folder)
    differences = {
        name: worst_difference(state, solo.states[name]) for name, state in sorted(fleet.states.items())
    }
    failed = sorted({student.config.name for student in students} - differences.keys())
    _print(solo, fleet, differences, failed)
    result = {
        "students": len(students),
        "wall_ratio_vs_solo": round(fleet.seconds / solo.seconds, 3),
        "memory_ratio_vs_solo": round(fleet.peak_bytes / solo.peak_bytes, 3),
        "max_rel_weight_diff": max(differences.values(), default=None),
        "failed": len(failed),
    }
    print(json.dumps(result))
    return 1 if failed else 0


def _recommenders(folder: Path, cache: Path, epochs: int) -> Iterator[_Student]:
    """Yields a student a genre; prepares the data and the foundation model."""
    movielens = read(fetch(cache))
    split = split_ratings(movielens.ratings)
    foundation = train_foundation(
        movielens, split, cache / "foundation.safetensors", console=Console(stderr=True)
    )
    recipe = demo.Recipe()
    service = demo.service_config(foundation, movielens, teachers.free_port())
    for genre in _GENRES:
        team = demo.prepare_team(genre, movielens, split, foundation, folder)
        config = demo.run_config(
            recipe, team, "talking + KD", output=folder / "runs", address=_address(service), seed=0
        )
        yield _Student(_deterministic(config, epochs), service)


def _text_students(folder: Path, epochs: int) -> Iterator[_Student]:
    """Yields students of different widths and seeds."""
    tables = write_tables(folder, num_train=400, num_valid=64, num_test=64)
    service = teachers.encoder(teachers.free_port())
    for seed, width in enumerate((32, 48, 64, 96)):
        changes: dict[str, Any] = {
            "name": f"text-{width}",
            "output": folder / "runs",
            "seed": seed,
            "student.kwargs.dim": width,
            "teacher.address": _address(service),
            "data.train": str(tables.train),
            "data.valid": str(tables.valid),
            "data.test": str(tables.test),
        }
        yield _Student(_deterministic(TrainConfig.load(_EXAMPLE, changes), epochs), service)


def _address(service: ServiceConfig) -> str:
    return f"preceptor://{service.host}:{service.port}"


def _deterministic(config: TrainConfig, epochs: int) -> TrainConfig:
    changes = {
        "epochs": epochs,
        "cpus_per_worker": 0.5,
        "keep": "last",
        "talk": {**config.talk.model_dump(), "deterministic": True},
    }
    return TrainConfig.model_validate({**config.model_dump(), **changes})


def _solo(students: list[_Student], folder: Path) -> _Outcome:
    """Trains one student after another, each with a teacher of its own."""
    states = {}
    start_s = time.perf_counter()
    with PeakMemory() as memory:
        for student in students:
            name = student.config.name
            print(f"alone: {name}", file=sys.stderr, flush=True)
            files = [folder / f"{name}-{part}" for part in ("run.json", "service.json", "state.pt")]
            files[0].write_text(student.config.model_dump_json())
            files[1].write_text(student.service.model_dump_json())
            command = [sys.executable, "-m", "benchmarks.fleet_solo", *map(str, files)]
            subprocess.run(command, check=True)  # noqa: S603 - our own module
            states[name] = torch.load(files[2], weights_only=True)
    return _Outcome(time.perf_counter() - start_s, memory.peak_bytes, states)


def _fleet(students: list[_Student], folder: Path) -> _Outcome:
    """Trains all students as a fleet; those that failed have no state."""
    services = {student.service.name: student.service for student in students}
    runs = [student.config.model_dump(mode="json", exclude={"output"}) for student in students]
    path = folder / "fleet.yaml"
    content = {
        "name": "benchmark",
        "output": str(folder / "runs"),
        "parallelism": _PARALLELISM,
        "students": runs,
    }
    path.write_text(yaml.safe_dump(content))
    with PeakMemory() as memory, contextlib.ExitStack() as stack:
        for service in services.values():
            stack.enter_context(_served(service, folder))
        print("as a fleet", file=sys.stderr, flush=True)
        start_s = time.perf_counter()
        command = [_PRECEPTOR, "fleet", str(path)]
        subprocess.run(command, check=False)  # noqa: S603 - our own command
        seconds = time.perf_counter() - start_s
    names = [student.config.name for student in students]
    ended = [name for name in names if (folder / "runs" / name / "result.json").exists()]
    return _Outcome(seconds, memory.peak_bytes, {name: last_state(folder / "runs" / name) for name in ended})


@contextlib.contextmanager
def _served(service: ServiceConfig, folder: Path) -> Iterator[None]:
    """Runs `preceptor serve` while open."""
    path = folder / f"{service.name}.yaml"
    path.write_text(yaml.safe_dump(service.model_dump(mode="json")))
    command = [_PRECEPTOR, "serve", str(path)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(command, env=environment) as process:  # noqa: S603 - our own module
        try:
            wait_until_ready(service, _READY_TIMEOUT_S)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def _print(solo: _Outcome, fleet: _Outcome, differences: dict[str, float], failed: list[str]) -> None:
    table = Table(title=f"{len(solo.states)} students, two teachers, {_PARALLELISM} students at a time")
    for column in ("", "one by one, a teacher each", "fleet, shared teachers", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(
        "wall time, s", f"{solo.seconds:.0f}", f"{fleet.seconds:.0f}", f"{fleet.seconds / solo.seconds:.2f}"
    )
    table.add_row(
        "peak memory, MiB",
        f"{solo.peak_bytes / 2**20:.0f}",
        f"{fleet.peak_bytes / 2**20:.0f}",
        f"{fleet.peak_bytes / solo.peak_bytes:.2f}",
    )
    console = Console()
    console.print(table)
    for name, difference in differences.items():
        console.print(f"{name}: largest relative difference of a weight {difference:.1e}")
    for name in failed:
        console.print(f"{name}: failed")


if __name__ == "__main__":
    sys.exit(main())
