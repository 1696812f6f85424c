"""What does the teacher's cache save from the second epoch on?

    python -m benchmarks.cache

Trains the student of `examples/text` for two epochs of shuffled batches, against MiniLM behind a real gRPC
server, without Ray. Its reading is `beside`: the teacher reads every text itself too, and the first epoch
fills the cache. Prints a table, draws a plot if matplotlib is there and prints, as its last line, one JSON
object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import teachers
from benchmarks.counting_server import counting_server
from benchmarks.texts import write_tables
from student_client.config import TrainConfig
from student_client.run import StudentRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.counting_server import CountingServer
    from benchmarks.texts import Tables

_EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "text" / "talk.yaml"
_PLOT = Path("out/benchmarks/cache.png")
_NUM_TRAIN = 768
_NUM_VALID = 96
_EPOCHS = 2


@dataclass(frozen=True)
class _Run:
    """What one run of a student came to; lists have one entry an epoch.

    Attributes:
        times_s: wall time of an epoch's steps.
        hit_rates: the share of rows that the teacher was to read and had read before.
        cache_bytes: what the run added to the cache.
    """

    times_s: list[float]
    hit_rates: list[float]
    cache_bytes: int

    @property
    def ratio(self) -> float:
        """The second epoch's time over the first one's."""
        return self.times_s[1] / self.times_s[0]


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = _options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = write_tables(folder, num_train=_NUM_TRAIN, num_valid=_NUM_VALID, num_test=_NUM_VALID)
        with counting_server(teachers.encoder(teachers.free_port()), folder) as server:
            _train(server, tables, train=tables.valid, seed=0)  # other texts: nothing is warm but the code
            runs = [_train(server, tables, train=tables.train, seed=seed) for seed in range(options.num_runs)]
    console = Console()
    console.width = max(console.width, 120)
    console.print(_table(runs, tables.source))
    if importlib.util.find_spec("matplotlib"):
        _draw(runs, _PLOT)
    print(json.dumps(_result(runs, tables.source)), flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--num-runs", type=int, default=3, help="students, each with its own seed (default: 3)"
    )
    return parser.parse_args()


def _train(server: CountingServer, tables: Tables, *, train: Path, seed: int) -> _Run:
    """Trains one student in a conversation of its own, which finds nothing in the cache at first."""
    overrides = {
        "teacher.address": server.address,
        "data.train": train,
        "data.valid": tables.valid,
        "data.test": tables.test,
        "talk.reading": "beside",
        "epochs": _EPOCHS,
        "seed": seed,
    }
    run = StudentRun(TrainConfig.load(_EXAMPLE, overrides))
    before_bytes = server.report()["cache_bytes"]
    times_s, hit_rates = [], []
    for _ in range(_EPOCHS):
        start_s = time.perf_counter()
        for _ in run.train_epoch():
            end_s = time.perf_counter()  # of the last step: what follows does not involve the teacher
        times_s.append(end_s - start_s)
        counts = server.report()
        hit_rates.append(counts["cached"] / counts["rows"])
    run.close()
    shown = ", ".join(f"{time_s:.1f} s" for time_s in times_s)
    print(f"seed {seed}, {len(run.splits.train)} texts: {shown}", file=sys.stderr, flush=True)
    return _Run(times_s, hit_rates, counts["cache_bytes"] - before_bytes)


def _table(runs: Sequence[_Run], source: str) -> Table:
    table = Table(
        title=f"Two epochs of {_NUM_TRAIN:,} texts ({source}), reading beside, MiniLM",
        caption="Hits: rows that the teacher was to read and had read before. In epoch 1 these are rows that "
        "were read ahead of their turn, or of which more is asked at once. Cache: what one run adds. "
        "The ratio below is the median of the runs.",
    )
    for heading in (
        "seed",
        "epoch 1, s",
        "epoch 2, s",
        "ratio",
        "hits in 1",
        "hits in 2",
        "cache, MiB",
        "KiB a text",
    ):
        table.add_column(heading, justify="right")
    for seed, run in enumerate(runs):
        table.add_row(
            str(seed),
            *(f"{time_s:.2f}" for time_s in run.times_s),
            f"{run.ratio:.3f}",
            *(f"{hit_rate:.1%}" for hit_rate in run.hit_rates),
            f"{run.cache_bytes / 2**20:.1f}",
            f"{run.cache_bytes / 2**10 / _NUM_TRAIN:.1f}",
        )
    return table


def _draw(runs: Sequence[_Run], path: Path) -> None:
    """Draws each run's epochs as bars into a PNG file."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for epoch, color in enumerate(("#94a3b8", "#0f766e")):
        places = [seed + (epoch - 0.5) * 0.4 for seed in range(len(runs))]
        times_s = [run.times_s[epoch] for run in runs]
        bars = axes.bar(places, times_s, 0.38, label=f"epoch {epoch + 1}", color=color)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.set_xticks(range(len(runs)), [f"seed {seed}" for seed in range(len(runs))])
    axes.set_ylabel("seconds an epoch")
    axes.set_title("The teacher reads every text once")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _result(runs: Sequence[_Run], source: str) -> dict[str, Any]:
    return {
        "epoch2_over_epoch1": round(statistics.median(run.ratio for run in runs), 4),
        "hit_rate": round(statistics.mean(run.hit_rates[1] for run in runs), 4),
        "bytes": runs[0].cache_bytes,
        "bytes_per_text": round(runs[0].cache_bytes / _NUM_TRAIN, 1),
        "num_texts": _NUM_TRAIN,
        "epoch_s": [[round(time_s, 3) for time_s in run.times_s] for run in runs],
        "texts": source,
    }


if __name__ == "__main__":
    sys.exit(main())
