"""Does a service get the replicas that its students need, and give them back, without losing a turn?

    python -m benchmarks.autoscale [--seconds 240]

MiniLM on Ray Serve, one replica at least and two at most. Students, each with a conversation of its own,
ask for pairs of an exchange and a backward pass. What one replica can do is measured on a bare server, with
sixteen students who make no pauses; then four have the pauses that make them half of that: 1x. A quarter of
the time 1x, three eighths 4x (sixteen such students, twice what one replica can do), then 1x again.
Replicas are those that the directory names. Prints a table, draws a plot and, as its last line, prints one
JSON object; exits with 1 if a turn was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import matplotlib as mpl
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import teachers
from benchmarks.bare_server import bare_server
from benchmarks.pairs import Size, Tenant, close_all, open_tenants, run_for, warm_up
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from services.teacher.local import serving
from services.teacher.scaling import ScalingConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

mpl.use("Agg")

_PLOT = Path("out/benchmarks/autoscale.png")
_SIZE = Size(16, 32)
_FEW, _MANY = 4, 16
_LOAD_OF_FEW = 0.5  # of one replica
_PHASES = (("1x", _FEW, 1 / 4), ("4x", _MANY, 3 / 8), ("1x again", _FEW, 3 / 8))
_HIDDEN_SIZE, _SPLIT_LAYER = 384, 3
_CAPACITY_S = 10.0
_SCALING = ScalingConfig(
    max_replicas=2, target_queue_ms=150, upscale_delay_s=5, downscale_delay_s=20, look_back_s=5
)


@dataclass
class _Log:
    """What happened, by seconds since the start."""

    start_s: float = field(default_factory=time.monotonic)
    queue_ms: list[tuple[float, float]] = field(default_factory=list)
    replicas: list[tuple[float, int]] = field(default_factory=list)
    asked: int = 0
    answered: int = 0
    lost: list[str] = field(default_factory=list)

    def now_s(self) -> float:
        return time.monotonic() - self.start_s


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.autoscale", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="of all three loads together")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    config = teachers.encoder(teachers.free_port()).model_copy(
        update={"autoscaling": _SCALING, "num_cpus": 0.5}
    )
    with tempfile.TemporaryDirectory() as folder, bare_server(config, Path(folder)) as target:
        capacity = asyncio.run(_capacity(target))
    period_s = _FEW / (_LOAD_OF_FEW * capacity)
    _tell(f"one replica does {capacity:.1f} pairs a second, a student asks for one each {period_s:.2f} s")
    with serving(config, num_cpus=4) as address:
        target = address.removeprefix("preceptor://")
        log = asyncio.run(_run(target, period_s, seconds))
    return _report(log, seconds)


async def _capacity(target: str) -> float:
    """Returns the pairs a second of many students who make no pauses."""
    tenants = open_tenants(target, _MANY, _HIDDEN_SIZE, _SPLIT_LAYER)
    await warm_up(tenants, _SIZE)
    done = await run_for(tenants, _SIZE, _CAPACITY_S)
    await close_all(tenants)
    return done.pairs_per_s


async def _run(target: str, period_s: float, seconds: float) -> _Log:
    tenants = open_tenants(target, _MANY, _HIDDEN_SIZE, _SPLIT_LAYER)
    for tenant in tenants:
        tenant.prepare(_SIZE)
    log = _Log()
    watch = asyncio.create_task(_watch(target, log))
    end_s = 0.0
    for name, num_students, share in _PHASES:
        end_s += share * seconds
        _tell(f"{name}: {num_students} students until {end_s:.0f} s")
        async with asyncio.TaskGroup() as group:
            for tenant in tenants[:num_students]:
                group.create_task(_study(tenant, period_s, end_s, log))
    watch.cancel()
    await close_all(tenants)
    return log


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


async def _study(tenant: Tenant, period_s: float, end_s: float, log: _Log) -> None:
    """Asks for a pair, which is two turns, each `period_s`; the next at once if one took longer."""
    while log.now_s() < end_s:
        due_s = log.now_s() + period_s
        log.asked += 2
        try:
            answers = await tenant.pair(_SIZE)
        except Exception as error:  # noqa: BLE001 - what is looked for
            log.lost.append(f"{type(error).__name__}: {error}")
            continue
        log.answered += len(answers)
        log.queue_ms += [(log.now_s(), answer.receipt.queue_ms) for answer in answers]
        await asyncio.sleep(max(due_s - log.now_s(), 0))


async def _watch(target: str, log: _Log) -> None:
    """Notes once a second which replicas there are."""
    async with grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = TeacherServiceStub(channel)  # type: ignore[no-untyped-call]
        before = 0
        while True:
            response = await stub.FindReplicas(pb.FindReplicasRequest(), timeout=30, wait_for_ready=True)
            shares = [replica.num_conversations for replica in response.replicas]
            log.replicas.append((log.now_s(), len(shares)))
            if len(shares) != before:
                _tell(f"  {log.now_s():.0f} s: conversations by replica {shares}")
            before = len(shares)
            await asyncio.sleep(1)


def _report(log: _Log, seconds: float) -> int:
    table = Table(title="load 1x, 4x, 1x")
    for column in ("load", "seconds", "turns", "queue delay p50, ms", "p99, ms", "replicas at its end"):
        table.add_column(column, justify="right")
    begin_s = 0.0
    for name, _, share in _PHASES:
        end_s = begin_s + share * seconds
        waits = [wait for at_s, wait in log.queue_ms if begin_s <= at_s < end_s]
        at_end = [number for at_s, number in log.replicas if at_s < end_s][-1]
        p50, p99 = (f"{_percentile(waits, percent):.0f}" for percent in (50, 99))
        table.add_row(name, f"{begin_s:.0f}-{end_s:.0f}", str(len(waits)), p50, p99, str(at_end))
        begin_s = end_s
    console = Console()
    console.print(table)
    for problem in log.lost[:10]:
        console.print(problem, markup=False)
    _draw(log)
    console.print(f"plot: {_PLOT}")
    lost = log.asked - log.answered
    result = {
        "replicas_max": max(number for _, number in log.replicas),
        "replicas_end": log.replicas[-1][1],
        "turns_lost": lost,
        "p99_queue_ms": round(_percentile([wait for _, wait in log.queue_ms], 99), 1),
        "turns": log.answered,
    }
    print(json.dumps(result))
    return 1 if lost else 0


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else 0.0


def _draw(log: _Log) -> None:
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(8, 5), height_ratios=[2, 1])
    above.plot(*zip(*log.queue_ms, strict=True), ".", markersize=2)
    above.set_ylabel("queue delay of a turn, ms")
    below.step(*zip(*log.replicas, strict=True), where="post")
    below.set_ylabel("replicas")
    below.set_xlabel("seconds")
    figure.tight_layout()
    _PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(_PLOT, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
