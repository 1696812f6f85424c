"""How many students does one replica carry? A cost model, and how far it is from what is measured.

    python -m benchmarks.capacity [--device cpu] [--seconds 4]

MiniLM's upper three layers on a bare server. A pair, an exchange with its backward pass, costs a turn's part
`turn` (frames, checks, codec), a pass's part `pass`, shared by the k turns that are computed together, and
`token` for each of its T positions:

    seconds a pair = turn + pass / k + token * T        k = min(students, max(1, max_batch_tokens // T))

The three are fitted to one student with small turns, one with large turns, and 64 with small turns; the other
cells are predicted. Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bare_server import bare_server
from benchmarks.pairs import SIZES, Size, close_all, open_tenants, run_for, warm_up
from benchmarks.teachers import encoder, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

_HIDDEN_SIZE, _SPLIT_LAYER, _NUM_LAYERS = 384, 3, 3
_CELLS = tuple((name, number) for name in SIZES for number in (1, 16, 64) if (name, number) != ("large", 64))
_FITTED = (("small", 1), ("large", 1), ("small", 64))

Cell = tuple[str, int]


@dataclass(frozen=True)
class CostModel:
    """What a pair costs, in seconds.

    Attributes:
        turn_s: of each pair.
        pass_s: of each pass, forward and backward.
        token_s: of each position.
        max_batch_tokens: positions of a pass.
    """

    turn_s: float
    pass_s: float
    token_s: float
    max_batch_tokens: int

    def pairs_per_s(self, num_students: int, num_tokens: int) -> float:
        """Predicts the pairs a second of students whose turns have so many positions."""
        sharers = min(num_students, max(1, self.max_batch_tokens // num_tokens))
        return 1 / (self.turn_s + self.pass_s / sharers + self.token_s * num_tokens)

    @classmethod
    def fit(cls, measured: Mapping[Cell, float], max_batch_tokens: int) -> CostModel:
        """Solves for the three costs by the three cells of `_FITTED`, in pairs a second."""
        rows, values = [], []
        for name, num_students in _FITTED:
            num_tokens = SIZES[name].num_tokens
            sharers = min(num_students, max(1, max_batch_tokens // num_tokens))
            rows.append([1.0, 1 / sharers, float(num_tokens)])
            values.append(1 / measured[name, num_students])
        costs = torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), torch.tensor(values).double())
        turn_s, pass_s, token_s = costs.tolist()
        return cls(turn_s, pass_s, token_s, max_batch_tokens)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each cell")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = encoder(free_port()).model_copy(update={"num_gpus": float(options.device == "cuda")})
    max_batch_tokens, _ = config.engine.sizes(options.device)
    with tempfile.TemporaryDirectory() as folder, bare_server(config, Path(folder)) as target:
        measured = {cell: asyncio.run(_measure(target, *cell, options.seconds)) for cell in _CELLS}
    _report(CostModel.fit(measured, max_batch_tokens), measured)


async def _measure(target: str, name: str, num_students: int, seconds: float) -> float:
    size: Size = SIZES[name]
    print(f"{num_students} x {name}", file=sys.stderr, flush=True)
    tenants = open_tenants(target, num_students, _HIDDEN_SIZE, _SPLIT_LAYER)
    try:
        await warm_up(tenants, size)
        return (await run_for(tenants, size, seconds)).pairs_per_s
    finally:
        await close_all(tenants)


def _report(model: CostModel, measured: Mapping[Cell, float]) -> None:
    table = Table(title="pairs a second of one replica")
    for column in ("turns", "students", "measured", "predicted", "predicted / measured"):
        table.add_column(column, justify="left" if column == "turns" else "right")
    ratios = {}
    for (name, number), got in measured.items():
        predicted = model.pairs_per_s(number, SIZES[name].num_tokens)
        cells = (f"{got:.1f}", f"{predicted:.1f}", f"{predicted / got:.2f}")
        table.add_row(name, str(number), *cells[:2], "fitted" if (name, number) in _FITTED else cells[2])
        if (name, number) not in _FITTED:
            ratios[f"{name}_{number}"] = round(predicted / got, 3)
    Console().print(table)
    result = {
        "turn_ms": round(model.turn_s * 1000, 3),
        "pass_ms": round(model.pass_s * 1000, 3),
        "token_layer_us": round(model.token_s / _NUM_LAYERS * 1e6, 2),
        "predicted_over_measured": ratios,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
