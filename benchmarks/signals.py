"""What do metrics, traces, logs and status cost, and are they all there?

    python -m benchmarks.signals [--seconds 2] [--num-rounds 24]

Sixteen tenants talk in small turns, as in `benchmarks.tenants`, to a bare server of MiniLM. In every other
round all signals are on: metrics in a Ray of its own, spans, and a console that asks each second. Two servers
would not do: two processes that do the same differ by up to a tenth for as long as they live. Then a student
trains one step, and what both told of it is read. Prints, as its last line, one JSON object; README.md says
what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import math
import os
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import torch

from benchmarks.bare_server import bare_server, off_file
from benchmarks.pairs import SIZES, Tenant, close_all, num_pairs_for, run_round, warm_up
from benchmarks.signals_found import Joined, missing_metrics, spans_of_a_step
from benchmarks.teachers import encoder, free_port
from benchmarks.tenants_throughput import Cell
from preceptor.v1.status_pb2 import GetStatusRequest
from preceptor.v1.status_pb2_grpc import StatusServiceStub
from services.teacher.config import SignalsConfig
from student_client import InvalidMessageError, TeacherTalk, tracing
from student_client.config import TrainConfig
from student_client.run import StudentRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.pairs import Size
    from student_client.turns import ForwardAnswer, GradientsAnswer

_CELL = Cell(16, "small")
_NAMES = {"on": True, "off": False}
_HIDDEN_SIZE = 384
_SPLIT_LAYER = 3
_NUM_ROWS = 32
_CONSOLE_PERIOD_S = 1.0
_SETTLE_S = 1.2
_MIN_ROUNDS = 2  # else there is no standard error
_CONSOLE_HISTORY_S = 4  # it keeps what it was told before
_EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "text" / "talk.yaml"


class _TracedTenant(Tenant):
    """One whose pairs are spans, while that is wanted."""

    is_traced = True
    _num_pairs = 0

    async def pair(self, size: Size) -> tuple[ForwardAnswer, GradientsAnswer]:
        """Exchanges a message and takes the gradients."""
        if not self.is_traced:
            return await super().pair(size)
        self._num_pairs += 1
        with tracing.step(self._num_pairs):
            return await super().pair(size)


def main() -> None:
    """Measures, then looks at what was told."""
    options = _options()
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with tempfile.TemporaryDirectory() as name:
        found = _run(options, Path(name))
    print(json.dumps(found), flush=True)
    sys.exit(0 if found["metrics_missing"] == [] and found["step"]["joined"] else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.signals", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="about what a round takes (default: 2)")
    parser.add_argument("--num-rounds", type=int, default=24, help="with and without (default: 24)")
    options = parser.parse_args()
    if options.num_rounds < _MIN_ROUNDS:
        parser.error(f"--num-rounds: got {options.num_rounds}, expected at least {_MIN_ROUNDS}")
    return options


def _run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    traces, metrics = folder / "teacher.jsonl", folder / "metrics"
    told = SignalsConfig(traces=str(traces), logs="json")
    config = encoder(free_port()).model_copy(update={"signals": told})
    with bare_server(config, folder, metrics=metrics) as target, _console(target) as console:
        switches = [console, _switch_of(metrics)]
        rates = asyncio.run(_measure(options, target, folder, switches))
        return _json(rates, _step(target, folder, traces), _metrics(target, metrics))


async def _measure(
    options: argparse.Namespace, target: str, folder: Path, switches: list[Callable[[bool], None]]
) -> dict[bool, list[float]]:
    """Returns pairs a second of each round, with signals and without."""
    size, rates = SIZES[_CELL.size], dict[bool, list[float]]({True: [], False: []})
    tenants = [
        _TracedTenant(target, f"tenant-{seed}", hidden_size=_HIDDEN_SIZE, seed=seed, split_layer=_SPLIT_LAYER)
        for seed in range(_CELL.num_tenants)
    ]

    def trace(is_on: bool) -> None:  # noqa: FBT001 - a switch
        for tenant in tenants:
            tenant.is_traced = is_on

    with tracing.traces_to(str(folder / "pairs.jsonl")):
        num_pairs = num_pairs_for(options.seconds, await warm_up(tenants, size), len(tenants))
        await run_round(tenants, size, num_pairs)
        for number in range(options.num_rounds):
            for is_on in (True, False) if number % 2 else (False, True):
                for switch in (trace, *switches):
                    switch(is_on)
                rates[is_on].append((await run_round(tenants, size, num_pairs)).pairs_per_s)
                await asyncio.sleep(_SETTLE_S)  # what was told leaves within a second: not in the next round
            print(
                f"round {number + 1}: {rates[True][-1] / rates[False][-1]:.3f}", file=sys.stderr, flush=True
            )
    await close_all(tenants)
    for switch in switches:
        switch(True)  # noqa: FBT003
    return rates


def _switch_of(metrics: Path) -> Callable[[bool], None]:
    """Returns what has a bare server tell of its metrics, or not."""
    off = off_file(metrics)

    def switch(is_on: bool) -> None:  # noqa: FBT001
        off.unlink(missing_ok=True) if is_on else off.touch()

    return switch


@contextlib.contextmanager
def _console(target: str) -> Iterator[Callable[[bool], None]]:
    """Asks a server how it is, as an open console does, while open and switched on."""
    ended, asks = threading.Event(), threading.Event()

    def look() -> None:
        with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub: Any = StatusServiceStub(channel)  # type: ignore[no-untyped-call]
            while not ended.wait(_CONSOLE_PERIOD_S):
                if asks.is_set():
                    stub.GetStatus(GetStatusRequest(history_s=_CONSOLE_HISTORY_S), timeout=30)

    thread = threading.Thread(target=look, name="console")
    thread.start()
    try:
        yield lambda is_on: asks.set() if is_on else asks.clear()
    finally:
        ended.set()
        thread.join()


def _step(target: str, folder: Path, traces: Path) -> Joined:
    """Trains one step, and returns what both processes told of it."""
    table, spans = folder / "table.csv", folder / "student.jsonl"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"number {number}", number % 2] for number in range(_NUM_ROWS))
    overrides = {
        "teacher.address": f"preceptor://{target}",
        "data.train": table,
        "data.valid": table,  # so that all rows are one batch
        "output": folder,
    }
    with tracing.traces_to(str(spans)):
        run = StudentRun(TrainConfig.load(_EXAMPLE, overrides))
        next(run.train_epoch())
        run.close()
    return spans_of_a_step(spans, traces)


def _metrics(target: str, metrics: Path) -> list[str]:
    """Has a turn refused, and returns the metrics that are not told of while its conversation is open."""
    talk = TeacherTalk.connect(
        f"preceptor://{target}", student_dim=8, message_dim=8, message_len=1, reading="replace"
    )
    with contextlib.suppress(InvalidMessageError):
        talk(torch.full((1, 8), torch.nan))
    try:
        return missing_metrics(metrics.read_text())
    finally:
        talk.close()


def _json(rates: dict[bool, list[float]], joined: Joined, missing: list[str]) -> dict[str, Any]:
    ratios = [on / off for on, off in zip(rates[True], rates[False], strict=True)]
    return {
        "throughput_ratio": round(statistics.median(ratios), 4),
        "standard_error": round(statistics.stdev(ratios) / math.sqrt(len(ratios)), 4),
        "pairs_per_s": {name: round(statistics.median(rates[is_on]), 1) for name, is_on in _NAMES.items()},
        "num_rounds": len(ratios),
        "metrics_missing": missing,
        "step": {"spans": joined.num_spans, "joined": joined.is_whole},
    }


if __name__ == "__main__":
    main()
