"""Is talking with a served teacher the same computation as having it in the process?

    python -m benchmarks.parity

Serves a teacher of each family with Ray Serve, one after another, and trains a small student through it and,
from the same weights on the same batches, with the teacher in this process: 3 families, 3 readings, 1 and 2
rounds. Everything is float32 on one torch thread a side. Prints a table and, as its last line, one JSON
object; exits with 1 if any relative error is above 1e-5.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import teachers
from benchmarks.reference import QUANTITIES, Parity, compare, remote_and_local
from benchmarks.student import make_batches
from preceptor.terms import Reading
from services.teacher.families import load_teacher
from services.teacher.local import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher

_TOLERANCE = 1e-5
_NUM_ROWS = 4
_NUM_WORDS = (2, 4)
_NUM_BATCHES = 5
_MESSAGE_LEN = 2
_ROUNDS = (1, 2)
_FAMILIES = ("module", "encoder", "decoder")
# The decoder is by far the slowest: its messages go through its last 4 of 30 layers only.
_SPLIT_LAYERS = {"module": 2, "encoder": 3, "decoder": 26}


@dataclass(frozen=True)
class Case:
    """One comparison and what came of it."""

    family: str
    layers: str
    reading: Reading
    num_rounds: int
    parity: Parity


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = _options()
    torch.set_num_threads(1)
    port, progress, start_s = teachers.free_port(), Console(stderr=True), time.monotonic()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as folder:
        configs = [_config(family, port, Path(folder)) for family in options.families]
        with teachers.one_ray(configs[0]):
            for config in configs:
                for case in _cases(config, options.num_steps):
                    cases.append(case)
                    progress.log(case.family, case.reading, case.num_rounds, f"{case.parity.largest:.1e}")
    console = Console()
    console.width = max(console.width, 120)
    console.print(_table(cases, options.num_steps))
    result = _result(cases, time.monotonic() - start_s)
    print(json.dumps(result), flush=True)
    return 0 if result["max_rel_error"] <= _TOLERANCE else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.split("\n\n")[0])
    parser.add_argument("--num-steps", type=int, default=50, help="AdamW steps of a case (default: 50)")
    parser.add_argument(
        "--families", nargs="+", choices=_FAMILIES, default=_FAMILIES, help="teachers (default: all)"
    )
    return parser.parse_args()


def _config(family: str, port: int, folder: Path) -> ServiceConfig:
    if family == "module":
        return teachers.module(port, folder)
    if family == "encoder":
        return teachers.encoder(port)
    return teachers.decoder(port, _SPLIT_LAYERS[family])


def _cases(config: ServiceConfig, num_steps: int) -> Iterator[Case]:
    """Serves a teacher and yields its cases."""
    with ThreadPoolExecutor(1) as pool:
        # Reading a GGUF file takes a while, so both sides do it at the same time.
        loading = pool.submit(load_teacher, config, torch.device("cpu"), torch.float32)
        with serving(config) as address:
            teacher = loading.result()
            for reading in Reading:
                for num_rounds in _ROUNDS:
                    yield _case(address, teacher, reading, num_rounds, num_steps)


def _case(address: str, teacher: Teacher, reading: Reading, num_rounds: int, num_steps: int) -> Case:
    family, num_layers = teacher.facts.family, teacher.facts.num_layers
    split_layer = _SPLIT_LAYERS[family]
    batches = make_batches(
        _NUM_BATCHES, _NUM_ROWS, _NUM_WORDS, as_tensors=family == "module", seed=num_rounds
    )
    remote, local = remote_and_local(
        address, teacher, reading=reading, split_layer=split_layer, message_len=_MESSAGE_LEN
    )
    parity = compare(remote, local, batches, num_rounds=num_rounds, num_steps=num_steps)
    remote.close()
    return Case(family, f"{split_layer} + {num_layers - split_layer}", reading, num_rounds, parity)


def _table(cases: list[Case], num_steps: int) -> Table:
    table = Table(
        title="Relative error of a served teacher against the same teacher in the process",
        caption=f"max|a-b| / max|b|, float32, 1 torch thread a side. Loss: of all {num_steps} AdamW steps; "
        "reply and gradients: of the first; weights (student and codec): after the last. "
        f"{_NUM_ROWS} rows of {_NUM_WORDS[0]} to {_NUM_WORDS[1]} words, message_len {_MESSAGE_LEN}. Layers: "
        "below + above the talking layer (the decoder's is high, or its cases would take too long). Moved: "
        "the parameter that training changed least. 0: the same bits.",
    )
    for heading in ("teacher", "layers", "reading", "rounds"):
        table.add_column(heading)
    for heading in (*QUANTITIES, "moved"):
        table.add_column(heading.replace("_", " "), justify="right")
    for case in cases:
        numbers = [*(case.parity.errors[name] for name in QUANTITIES), case.parity.weight_change]
        shown = ["0" if number == 0 else f"{number:.1e}" for number in numbers]
        table.add_row(case.family, case.layers, case.reading, str(case.num_rounds), *shown)
    return table


def _result(cases: list[Case], duration_s: float) -> dict[str, Any]:
    return {
        "max_rel_error": max(case.parity.largest for case in cases),
        "cases": len(cases),
        "tolerance": _TOLERANCE,
        "bit_identical_cases": sum(case.parity.largest == 0 for case in cases),
        "min_weight_change": min(case.parity.weight_change for case in cases),
        "max_rel_error_by_quantity": {
            name: max(case.parity.errors[name] for case in cases) for name in QUANTITIES
        },
        "duration_s": round(duration_s, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
