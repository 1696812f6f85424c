"""What do metrics, traces, logs and status cost, and are they all there?

    python -m benchmarks.signals [--seconds 2] [--num-rounds 6] [--num-servers 4]

Sixteen tenants talk in small turns, as in `benchmarks.tenants`, to two bare servers of MiniLM in turn. On one
all signals are on: metrics in a Ray of its own, spans, JSON logs, and a console that asks each second; on the
other none. Two processes that do the same differ by some per cent for as long as they live, so this is done
with several pairs of servers. Then a student trains one step against the last that tells, and what both told
of it is read. Prints, as its last line, one JSON object; README.md says what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import torch

from benchmarks.bare_server import bare_server
from benchmarks.pairs import Tenant, close_all, open_tenants
from benchmarks.signals_found import Joined, missing_metrics, spans_of_a_step
from benchmarks.teachers import encoder, free_port
from benchmarks.tenants_throughput import Cell, measure_throughput
from preceptor.v1.status_pb2 import GetStatusRequest
from preceptor.v1.status_pb2_grpc import StatusServiceStub
from services.teacher.config import SignalsConfig
from student_client import InvalidMessageError, TeacherTalk, tracing
from student_client.config import TrainConfig
from student_client.run import StudentRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.pairs import Size
    from benchmarks.tenants_throughput import Measurements
    from student_client.turns import ForwardAnswer, GradientsAnswer

_CELL = Cell(16, "small")
_HIDDEN_SIZE = 384
_SPLIT_LAYER = 3
_NUM_ROWS = 32
_CONSOLE_PERIOD_S = 1.0
_CONSOLE_HISTORY_S = 4  # it keeps what it was told before
_EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "text" / "intent.yaml"


class _TracedTenant(Tenant):
    """One whose pairs are spans."""

    _num_pairs = 0

    async def pair(self, size: Size) -> tuple[ForwardAnswer, GradientsAnswer]:
        """Exchanges a message and takes the gradients."""
        self._num_pairs += 1
        with tracing.step(self._num_pairs):
            return await super().pair(size)


def main() -> None:
    """Measures, then looks at what was told."""
    options = _options()
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    found = _run(options)
    print(json.dumps(found), flush=True)
    sys.exit(0 if found["metrics_missing"] == [] and found["step"]["joined"] else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.signals", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="about what a round takes (default: 2)")
    parser.add_argument("--num-rounds", type=int, default=6, help="of each server (default: 6)")
    parser.add_argument("--num-servers", type=int, default=4, help="pairs of servers (default: 4)")
    return parser.parse_args()


def _run(options: argparse.Namespace) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"on": [], "off": []}
    for number in range(options.num_servers):
        is_last = number == options.num_servers - 1
        with tempfile.TemporaryDirectory() as name, _servers(Path(name), on_first=number % 2 == 0) as found:
            (on, metrics), off, traces = found
            folder = Path(name)
            with tracing.traces_to(str(folder / "pairs.jsonl")):
                measured = asyncio.run(_measure(options, on, off))
            for variant in rates:
                rates[variant] += measured.rates[variant][_CELL]
            ratio = _ratio(*(measured.rates[variant][_CELL] for variant in rates))
            print(f"servers {number + 1}: {ratio:.3f}", file=sys.stderr, flush=True)
            if is_last:
                joined, missing = _step(on, folder, traces), _metrics(on, metrics)
    return _json(rates, joined, missing)


@contextlib.contextmanager
def _servers(folder: Path, *, on_first: bool) -> Iterator[tuple[tuple[str, Path], str, Path]]:
    """Runs a server that tells all, with a console, and one that tells nothing, while open.

    Yields:
        The first one's address and the file that says where its metrics are, the other's address, and the
        first one's spans.
    """
    traces, metrics = folder / "teacher.jsonl", folder / "metrics"
    silent = encoder(free_port()).model_copy(update={"signals": SignalsConfig(metrics=False)})
    told = SignalsConfig(traces=str(traces), logs="json")
    telling = encoder(free_port()).model_copy(update={"signals": told})
    with contextlib.ExitStack() as stack:
        if not on_first:
            off = stack.enter_context(bare_server(silent, folder))
        on = stack.enter_context(bare_server(telling, folder, metrics=metrics))
        if on_first:
            off = stack.enter_context(bare_server(silent, folder))
        stack.enter_context(_console(on))
        yield (on, metrics), off, traces


async def _measure(options: argparse.Namespace, on: str, off: str) -> Measurements:
    traced: list[Tenant] = [
        _TracedTenant(on, f"tenant-{seed}", hidden_size=_HIDDEN_SIZE, seed=seed, split_layer=_SPLIT_LAYER)
        for seed in range(_CELL.num_tenants)
    ]
    tenants = {"on": traced, "off": open_tenants(off, _CELL.num_tenants, _HIDDEN_SIZE, _SPLIT_LAYER)}
    measured = await measure_throughput(
        tenants,
        None,
        [_CELL],
        num_rounds=options.num_rounds,
        seconds=options.seconds,
        max_dedicated=0,
    )
    for each in tenants.values():
        await close_all(each)
    return measured


@contextlib.contextmanager
def _console(target: str) -> Iterator[None]:
    """Asks a server how it is, as an open console does, while open."""
    ended = threading.Event()

    def look() -> None:
        with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub: Any = StatusServiceStub(channel)  # type: ignore[no-untyped-call]
            while not ended.wait(_CONSOLE_PERIOD_S):
                stub.GetStatus(GetStatusRequest(history_s=_CONSOLE_HISTORY_S), timeout=30)

    thread = threading.Thread(target=look, name="console")
    thread.start()
    try:
        yield
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
    talk = TeacherTalk.connect(f"preceptor://{target}", student_dim=8, message_dim=8, message_len=1)
    with contextlib.suppress(InvalidMessageError):
        talk(torch.full((1, 8), torch.nan))
    try:
        return missing_metrics(metrics.read_text())
    finally:
        talk.close()


def _ratio(on: list[float], off: list[float]) -> float:
    """Returns the median of the ratios of rounds beside each other."""
    return statistics.median(first / second for first, second in zip(on, off, strict=True))


def _json(rates: dict[str, list[float]], joined: Joined, missing: list[str]) -> dict[str, Any]:
    return {
        "throughput_ratio": round(_ratio(rates["on"], rates["off"]), 4),
        "pairs_per_s": {variant: round(statistics.median(rounds), 1) for variant, rounds in rates.items()},
        "num_rounds": len(rates["on"]),
        "metrics_missing": missing,
        "step": {"spans": joined.num_spans, "joined": joined.is_whole},
    }


if __name__ == "__main__":
    main()
