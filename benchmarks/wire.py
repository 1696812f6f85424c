"""What do narrow types on the wire save, and what do they cost the student?

    python -m benchmarks.wire

Trains the student of `examples/text` against MiniLM behind a real gRPC server, without Ray, once per type
(float32, bfloat16, int8) and seed; all else is the same, and the runs of a seed alternate. The same student
alone, without a teacher, tells how much there is to lose. Prints a table, draws a plot if matplotlib is there
and prints, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
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
from preceptor.compression import WireType
from student_client.config import TrainConfig
from student_client.run import StudentRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.counting_server import CountingServer
    from benchmarks.texts import Tables

_EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "text" / "talk.yaml"
_PLOT = Path("out/benchmarks/wire.png")
_TYPES = (WireType.FLOAT32, WireType.BFLOAT16, WireType.INT8)
_NUM_TRAIN = 384
_NUM_VALID = 200
_NUM_TEST = 10_000  # all the rest: the more, the smaller the differences that can be seen
_COLUMNS = ("talk", "observations", "codec", "inputs", "total")
_MIN_RATIO = 3.5
_MAX_DROP = 0.5


@dataclass(frozen=True)
class _Outcome:
    """What one run came to.

    Attributes:
        wire_type: of all that is compressed.
        accuracy: on the test texts, in percent.
        grounded: the task's loss as told by the decoded replies, mean of the last epoch; unlike the accuracy
            it depends on every message and reply directly.
        bytes_per_example: by what they are; see `CountingServer.report`.
    """

    wire_type: WireType
    accuracy: float
    grounded: float
    bytes_per_example: dict[str, float]


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = _options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = write_tables(folder, num_train=_NUM_TRAIN, num_valid=_NUM_VALID, num_test=_NUM_TEST)
        with counting_server(teachers.encoder(teachers.free_port()), folder) as server:
            runs = itertools.product(range(options.num_seeds), _TYPES)
            outcomes = [_train(server, tables, wire_type, seed, options.epochs) for seed, wire_type in runs]
        alone = [_train_alone(tables, seed, options.epochs) for seed in range(options.num_seeds)]
    console = Console()
    console.width = max(console.width, 130)
    console.print(_table(outcomes, alone, tables.source))
    if importlib.util.find_spec("matplotlib"):
        _draw(outcomes, alone, _PLOT)
    print(json.dumps(_result(outcomes, alone, tables.source)), flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__.split("\n\n")[0])
    parser.add_argument("--num-seeds", type=int, default=3, help="runs of each type (default: 3)")
    parser.add_argument("--epochs", type=int, default=None, help="of each run (default: the example's)")
    return parser.parse_args()


def _config(tables: Tables, seed: int, epochs: int | None, **talk: object) -> TrainConfig:
    """Returns the example's run; its weights after the last step count, where the learning rate ends at 0."""
    overrides = {
        "data.train": tables.train,
        "data.valid": tables.valid,
        "data.test": tables.test,
        "keep": "last",
        "seed": seed,
        **({} if epochs is None else {"epochs": epochs}),
        **talk,
    }
    return TrainConfig.load(_EXAMPLE, overrides)


def _train(
    server: CountingServer, tables: Tables, wire_type: WireType, seed: int, epochs: int | None
) -> _Outcome:
    """Trains one student that talks."""
    talk = {"teacher.address": server.address, "talk.compression": wire_type.value}
    run = StudentRun(_config(tables, seed, epochs, **talk))
    start_s = time.perf_counter()
    server.report()
    for _ in range(run.config.epochs):
        grounded = statistics.mean(losses["grounded"] for losses in run.train_epoch())
    counts = server.report()
    accuracy = 100.0 * float(run.finish()["test"])
    run.close()
    num_examples = run.config.epochs * len(run.splits.train)
    elapsed_s = time.perf_counter() - start_s
    print(f"seed {seed}, {wire_type}: {accuracy:.2f} % in {elapsed_s:.0f} s", file=sys.stderr, flush=True)
    sizes = {name: counts[name] / num_examples for name in _COLUMNS}
    return _Outcome(wire_type, accuracy, grounded, sizes)


def _train_alone(tables: Tables, seed: int, epochs: int | None) -> float:
    """Trains one student without a teacher; returns its accuracy in percent."""
    silence = {f"losses.{name}": 0.0 for name in ("interact", "grounded", "message", "state")}
    run = StudentRun(_config(tables, seed, epochs, teacher=None, **silence))
    for _ in range(run.config.epochs):
        for _ in run.train_epoch():
            pass
    return 100.0 * float(run.finish()["test"])


def _accuracies(outcomes: Sequence[_Outcome], wire_type: WireType) -> list[float]:
    return [each.accuracy for each in outcomes if each.wire_type is wire_type]


def _bytes(outcomes: Sequence[_Outcome], wire_type: WireType, column: str) -> float:
    return statistics.mean(each.bytes_per_example[column] for each in outcomes if each.wire_type is wire_type)


def _ratio(outcomes: Sequence[_Outcome], wire_type: WireType, column: str = "talk") -> float:
    return _bytes(outcomes, WireType.FLOAT32, column) / _bytes(outcomes, wire_type, column)


def _drop(outcomes: Sequence[_Outcome], wire_type: WireType) -> float:
    """Returns the points of accuracy that a type loses against float32."""
    means = [statistics.mean(_accuracies(outcomes, each)) for each in (WireType.FLOAT32, wire_type)]
    return means[0] - means[1]


def _grounded(outcomes: Sequence[_Outcome], wire_type: WireType) -> float:
    return statistics.mean(each.grounded for each in outcomes if each.wire_type is wire_type)


def _table(outcomes: Sequence[_Outcome], alone: Sequence[float], source: str) -> Table:
    table = Table(
        title=f"Bytes on the wire an example, and the student's accuracy ({source})",
        caption="Talk: messages, replies and the gradients of both, as encoded; the ratio is theirs. "
        "Observed: the values of observations and their gradients. Codec: updates, always float32, and "
        "gradients; they go by the step, not by the example. Total: whole frames. "
        "Grounded: the task's loss as told by the replies, in the last epoch. "
        "Accuracy: on the test texts, in percent, mean and by seed; drop: in points. "
        f"Wanted: int8 at least {_MIN_RATIO} times fewer bytes within {_MAX_DROP} points.",
    )
    headings = ("talk", "observed", "codec", "inputs", "total", "ratio", "of total")
    for heading in ("type", *headings, "grounded", "accuracy", "by seed", "drop"):
        table.add_column(heading, justify="right", no_wrap=True)
    for wire_type in _TYPES:
        accuracies = _accuracies(outcomes, wire_type)
        table.add_row(
            wire_type,
            *(f"{_bytes(outcomes, wire_type, column):,.0f}" for column in _COLUMNS),
            f"{_ratio(outcomes, wire_type):.2f}",
            f"{_ratio(outcomes, wire_type, 'total'):.2f}",
            f"{_grounded(outcomes, wire_type):.4f}",
            f"{statistics.mean(accuracies):.2f}",
            " ".join(f"{accuracy:.1f}" for accuracy in accuracies),
            f"{_drop(outcomes, wire_type):+.2f}",
        )
    shown = " ".join(f"{accuracy:.1f}" for accuracy in alone)
    table.add_row("alone", *[""] * (len(headings) + 1), f"{statistics.mean(alone):.2f}", shown, "")
    return table


def _draw(outcomes: Sequence[_Outcome], alone: Sequence[float], path: Path) -> None:
    """Draws accuracy over bytes, a point a run and a line through the means, into a PNG file."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    places = {wire_type: _bytes(outcomes, wire_type, "talk") for wire_type in _TYPES}
    means = [statistics.mean(_accuracies(outcomes, wire_type)) for wire_type in _TYPES]
    axes.plot(list(places.values()), means, color="#94a3b8", zorder=1, label="mean of the seeds")
    for wire_type, place in places.items():
        accuracies = _accuracies(outcomes, wire_type)
        axes.scatter([place] * len(accuracies), accuracies, color="#0f766e", zorder=2)
        axes.annotate(wire_type.value, (place, max(accuracies)), xytext=(0, 6), textcoords="offset points")
    axes.axhline(statistics.mean(alone), color="#f59e0b", linestyle=":", label="without a teacher")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(places.values()), [f"{place:,.0f}" for place in places.values()])
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.1)
    axes.set_xlabel("bytes an example (messages, replies, their gradients)")
    axes.set_ylabel("test accuracy in % (axis does not start at 0)")
    axes.set_title("Narrow types on the wire")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _result(outcomes: Sequence[_Outcome], alone: Sequence[float], source: str) -> dict[str, Any]:
    names = {"int8": WireType.INT8, "bf16": WireType.BFLOAT16}
    result: dict[str, Any] = {}
    for name, wire_type in names.items():
        result[f"{name}_bytes_ratio"] = round(_ratio(outcomes, wire_type), 4)
        result[f"{name}_accuracy_drop"] = round(_drop(outcomes, wire_type), 4)
    result["bytes_per_example"] = {
        wire_type.value: {column: round(_bytes(outcomes, wire_type, column), 1) for column in _COLUMNS}
        for wire_type in _TYPES
    }
    accuracies: dict[str, Sequence[float]] = {each.value: _accuracies(outcomes, each) for each in _TYPES}
    accuracies["alone"] = alone
    result["accuracy"] = {name: [round(each, 3) for each in values] for name, values in accuracies.items()}
    result["grounded_loss"] = {each.value: round(_grounded(outcomes, each), 5) for each in _TYPES}
    result["texts"] = source
    return result


if __name__ == "__main__":
    sys.exit(main())
