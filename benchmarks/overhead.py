"""What does talking over Ray Serve cost?

    python -m benchmarks.overhead

(a) Round trips of single frames to a teacher that does nothing, through Ray Serve's direct ingress and
through a bare gRPC server with the same servicer and engine. (b) One training step of a small text student
with MiniLM behind Ray Serve, and the same step with MiniLM in the student's process. The two sides of each
comparison alternate. Prints two tables and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import teachers
from benchmarks.bare_server import bare_server
from benchmarks.frames import FrameTimes, time_frames
from benchmarks.reference import TalkingStudent, remote_and_local
from benchmarks.student import Batch, make_batches
from preceptor.terms import Reading
from services.teacher.families import load_teacher
from services.teacher.local import find_replicas, serving

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAYLOADS = {"4k": 4 << 10, "64k": 64 << 10, "1m": 1 << 20}
_FRAMES_A_BLOCK = {"4k": 25, "64k": 25, "1m": 10}
_WIDTH = 8
_MAX_FRAME_RATIO = 1.3
_MAX_STEP_RATIO = 1.25
_NUM_ROWS = 32
_NUM_WORDS = (13, 14)  # with the two special tokens about 16 tokens
_STUDENT = {"width": 64, "message_dim": 32, "message_len": 4}
_SPLIT_LAYER = 3
_STEPS_A_BLOCK = 2
_FIND_TIMEOUT_S = 10.0


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = _options()
    torch.set_num_threads(1)
    port = teachers.free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        idle = teachers.identity(port, folder, _WIDTH)
        with teachers.one_ray(idle):
            bare = idle.model_copy(update={"port": teachers.free_port()})
            with serving(idle), bare_server(bare, folder) as bare_target:
                (replica,) = find_replicas(idle, _FIND_TIMEOUT_S)
                targets = {"serve": replica, "bare": bare_target}
                frames = asyncio.run(_frames(targets, options.num_blocks))
            config = teachers.encoder(port)
            with serving(config) as address:
                teacher = load_teacher(config, torch.device("cpu"), torch.float32)
                remote, local = remote_and_local(
                    address, teacher, reading=Reading.BESIDE, split_layer=_SPLIT_LAYER, **_STUDENT
                )
                steps = _time_steps({"remote": remote, "local": local}, options.num_blocks)
                remote.close()
    console = Console()
    console.width = max(console.width, 120)
    console.print(_frame_table(frames), _step_table(steps))
    print(json.dumps(_result(frames, steps)), flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--num-blocks", type=int, default=40, help="alternating blocks (default: 40)")
    return parser.parse_args()


async def _frames(targets: dict[str, str], num_blocks: int) -> dict[str, dict[str, FrameTimes]]:
    """Returns the times of each payload at each target."""
    return {
        label: await time_frames(
            targets, size, width=_WIDTH, num_blocks=num_blocks, num_frames=_FRAMES_A_BLOCK[label]
        )
        for label, size in _PAYLOADS.items()
    }


def _time_steps(sides: dict[str, TalkingStudent], num_blocks: int) -> dict[str, list[float]]:
    """Returns what training steps took at each side, in milliseconds; the first block is not counted."""
    batches = make_batches(8, _NUM_ROWS, _NUM_WORDS, as_tensors=False, seed=0)
    optimizers = {name: side.optimizer() for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for block in range(num_blocks + 1):
        for name in list(sides) if block % 2 else list(sides)[::-1]:
            for step in range(_STEPS_A_BLOCK):
                batch = batches[(block * _STEPS_A_BLOCK + step) % len(batches)]
                elapsed_ms = _time_step(sides[name], optimizers[name], batch)
                if block:
                    times[name].append(elapsed_ms)
    return times


def _time_step(side: TalkingStudent, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    start = time.perf_counter()
    optimizer.zero_grad()
    loss, _ = side(batch)
    loss.backward()
    optimizer.step()
    return (time.perf_counter() - start) * 1000


def _p50(times_ms: Sequence[float]) -> float:
    return statistics.median(times_ms)


def _p99(times_ms: Sequence[float]) -> float:
    return statistics.quantiles(times_ms, n=100, method="inclusive")[98]


def _frame_ratio(times: dict[str, FrameTimes]) -> float:
    return _p50(times["serve"].total_ms) / _p50(times["bare"].total_ms)


def _frame_table(frames: dict[str, dict[str, FrameTimes]]) -> Table:
    table = Table(
        title="Round trip of one frame, teacher replaced by the identity, milliseconds",
        caption="Raw grpc.aio client, one frame under way. Includes: protobuf, the stream, the service's "
        "checks, hash and queue, the reply, and the compute thread: the codec's two linear maps, "
        f"{_WIDTH} x {_WIDTH}, around two blocks that do nothing. Compute: what that thread says of itself. "
        f"Ratio of p50: at most {_MAX_FRAME_RATIO} wanted.",
    )
    for heading in ("payload", "server", "frames", "p50", "p99", "of it compute", "ratio of p50"):
        table.add_column(heading, justify="right")
    for label, times in frames.items():
        for name, each in times.items():
            ratio = f"{_frame_ratio(times):.2f}" if name == "serve" else ""
            numbers = (_p50(each.total_ms), _p99(each.total_ms), _p50(each.compute_ms))
            shown = [f"{number:.3f}" for number in numbers]
            table.add_row(label, name, str(len(each.total_ms)), *shown, ratio)
    return table


def _step_table(steps: dict[str, list[float]]) -> Table:
    table = Table(
        title="One training step with MiniLM as the teacher, milliseconds",
        caption="Forward, exchange, backward, AdamW, one torch thread each. Student: 2-layer transformer, "
        f"width {_STUDENT['width']}; {_NUM_ROWS} texts of about 16 tokens; message "
        f"{_STUDENT['message_len']} x {_STUDENT['message_dim']}; reading beside; layers {_SPLIT_LAYER} + 3. "
        f"Ratio of p50: at most {_MAX_STEP_RATIO} wanted.",
    )
    for heading in ("teacher", "steps", "p50", "p99", "ratio of p50"):
        table.add_column(heading, justify="right")
    for name, times in steps.items():
        ratio = f"{_p50(steps['remote']) / _p50(steps['local']):.3f}" if name == "remote" else ""
        table.add_row(name, str(len(times)), f"{_p50(times):.1f}", f"{_p99(times):.1f}", ratio)
    return table


def _result(frames: dict[str, dict[str, FrameTimes]], steps: dict[str, list[float]]) -> dict[str, Any]:
    ratios = {f"frame_p50_ratio_{label}": round(_frame_ratio(times), 4) for label, times in frames.items()}
    return {
        **ratios,
        "student_step_ratio": round(_p50(steps["remote"]) / _p50(steps["local"]), 4),
        "frame_ms": {
            label: {
                name: {
                    "p50": round(_p50(each.total_ms), 4),
                    "p99": round(_p99(each.total_ms), 4),
                    "compute_p50": round(_p50(each.compute_ms), 4),
                }
                for name, each in times.items()
            }
            for label, times in frames.items()
        },
        "step_ms": {
            name: {"p50": round(_p50(times), 2), "p99": round(_p99(times), 2)}
            for name, times in steps.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
