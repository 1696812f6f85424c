"""What do many tenants gain by sharing one teacher?

    python -m benchmarks.tenants [--only throughput memory fairness exact] [--device cpu] [--seconds 1.5]

Tenants talk over real gRPC to MiniLM's upper layers on a bare server with one torch thread. Variants: `ours`
(turns of all tenants computed together, backward passes from retained graphs), `serial` (first come, first
served, one turn at a time, backward recomputed), `dedicated` (a teacher and a process for each tenant).
Prints tables, draws a plot and prints, as its last line, one JSON object; README.md says what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from benchmarks import tenants_report as report
from benchmarks.bare_server import bare_server
from benchmarks.memory import Memory, measure_memory
from benchmarks.pairs import SIZES, close_all, open_tenants
from benchmarks.teachers import encoder, free_port
from benchmarks.tenants_dedicated import DedicatedTenants
from benchmarks.tenants_exact import Exactness, measure_exactness
from benchmarks.tenants_fairness import Fairness, measure_fairness
from benchmarks.tenants_throughput import Cell, Measurements, measure_throughput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.teacher.config import ServiceConfig

_PARTS = ("throughput", "memory", "fairness", "exact")
_HIDDEN_SIZE = 384
_SPLIT_LAYER = 3
_MEMORY_TENANTS = 8
_PLOT = Path("out/benchmarks/tenants.png")


@dataclass(frozen=True)
class Results:
    """What the parts gave; None for those that were left out."""

    throughput: Measurements | None
    memory: Memory | None
    fairness: Fairness | None
    exactness: Exactness | None


def main() -> None:
    """Runs the parts that are asked for."""
    options = _options()
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with tempfile.TemporaryDirectory() as name:
        results = _run(options, Path(name))
    console = Console()
    console.width = max(console.width, 120)
    console.print(*report.tables(results.throughput, results.memory, results.fairness, results.exactness))
    if results.throughput is not None:
        report.draw(results.throughput, _PLOT)
        console.print(f"Plot: {_PLOT}")
    print(json.dumps(_json(results)), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tenants", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS, help="parts (default: all)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of the teachers")
    parser.add_argument("--seconds", type=float, default=1.5, help="about what a round takes (default: 1.5)")
    parser.add_argument("--num-rounds", type=int, default=3, help="of each variant (default: 3)")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--tenants", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument(
        "--max-dedicated", type=int, default=64, help="most with a teacher each (default: 64; 0: none)"
    )
    parser.add_argument("--profile", type=Path, help="a folder for profiles of the server's threads")
    return parser.parse_args()


def _run(options: argparse.Namespace, folder: Path) -> Results:
    throughput, memory, fairness, exactness = None, None, None, None
    config = encoder(free_port()).model_copy(update={"num_gpus": float(options.device == "cuda")})
    if "throughput" in options.only:
        throughput = _throughput(options, config, folder)
    if "fairness" in options.only:
        with bare_server(config, folder) as target:
            fairness = asyncio.run(measure_fairness(target, _HIDDEN_SIZE, _SPLIT_LAYER, options.seconds))
    if "exact" in options.only:
        with bare_server(config.model_copy(update={"dtype": "float32"}), folder) as target:
            exactness = asyncio.run(measure_exactness(target, _HIDDEN_SIZE, _SPLIT_LAYER, options.seconds))
    if "memory" in options.only:
        memory = measure_memory(folder, free_port(), _MEMORY_TENANTS, num_gpus=config.num_gpus)
    return Results(throughput, memory, fairness, exactness)


def _throughput(options: argparse.Namespace, ours: ServiceConfig, folder: Path) -> Measurements:
    """Starts all variants, measures them in turns and ends them."""
    cells = [Cell(num_tenants, size) for size in options.sizes for num_tenants in options.tenants]
    num_dedicated = max((each for each in options.tenants if each <= options.max_dedicated), default=0)
    serial = ours.model_copy(update={"port": free_port()})
    with contextlib.ExitStack() as stack:
        dedicated = None
        if num_dedicated:
            dedicated = stack.enter_context(DedicatedTenants.running(ours, num_dedicated, _SPLIT_LAYER))
        targets = {
            "serial": stack.enter_context(bare_server(serial, folder, engine="serial")),
            "ours": stack.enter_context(bare_server(ours, folder, profile=options.profile)),
        }
        return asyncio.run(_measure(options, targets, dedicated, cells))


async def _measure(
    options: argparse.Namespace,
    targets: Mapping[str, str],
    dedicated: DedicatedTenants | None,
    cells: list[Cell],
) -> Measurements:
    most = max(cell.num_tenants for cell in cells)
    shared = {
        variant: open_tenants(target, most, _HIDDEN_SIZE, _SPLIT_LAYER) for variant, target in targets.items()
    }
    measured = await measure_throughput(
        shared,
        dedicated,
        cells,
        num_rounds=options.num_rounds,
        seconds=options.seconds,
        max_dedicated=options.max_dedicated,
    )
    for tenants in shared.values():
        await close_all(tenants)
    return measured


def _json(results: Results) -> dict[str, Any]:
    """Returns the results that were measured, by the names that are agreed on."""
    found: dict[str, Any] = {}
    throughput = results.throughput
    if throughput is not None:
        for num_tenants, size in ((16, "small"), (16, "medium"), (16, "large"), (1, "small")):
            found[f"{size}_{num_tenants}_vs_serial"] = throughput.ratio(Cell(num_tenants, size))
        shares = [throughput.retained_share(Cell(16, size)) for size in ("small", "medium")]
        found["retained_share"] = min((share for share in shares if share is not None), default=None)
        found["pairs_per_s"] = {
            variant: {cell.key: _rounded(throughput.pairs_per_s(variant, cell)) for cell in cells}
            for variant, cells in throughput.rates.items()
        }
    if results.memory is not None:
        found["memory_8_vs_dedicated"] = results.memory.ratio
    if results.fairness is not None:
        found["jain"] = results.fairness.jain
        found["light_p99_ratio"] = results.fairness.p99_ratio
    if results.exactness is not None:
        found["max_rel_diff_batched"] = results.exactness.default.max_relative
        found["deterministic"] = {
            "max_rel_diff": results.exactness.deterministic.max_relative,
            "throughput_ratio": _rounded(results.exactness.throughput_ratio),
        }
    return {name: _rounded(value) for name, value in found.items() if value is not None}


def _rounded(value: Any) -> Any:
    """Returns a number of four digits, except for tiny ones; other values as they are."""
    return round(value, 4) if isinstance(value, float) and abs(value) > 1e-3 else value


if __name__ == "__main__":
    main()
