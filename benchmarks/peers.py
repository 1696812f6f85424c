"""How does one shared teacher compare with hivemind's server of experts?

    python -m benchmarks.peers [--seconds 3] [--num-rounds 5]

MiniLM's upper three layers, 8 examples x 1 position, forward and then backward, by 1 and by 16 clients in
closed loops: as an expert of hivemind 1.1.12, and served by us on a bare server. Both alternate. hivemind
lives in a virtual environment of its own, made below `out` when it is missing; it is no dependency. Prints a
table, draws a plot and prints, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bare_server import bare_server
from benchmarks.pairs import SIZES, close_all, num_pairs_for, open_tenants, run_round, warm_up
from benchmarks.teachers import encoder, free_port
from services.teacher.config import EncoderConfig
from services.teacher.families import resolve_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPOSITORY = Path(__file__).resolve().parents[1]
_VENV = _REPOSITORY / "out/peers/venv"
_PLOT = Path("out/benchmarks/peers.png")
_REQUIREMENTS = ("torch==2.13.0", "transformers", "hivemind==1.1.12")
_SIZE = SIZES["small"]
_NUM_TENANTS = (1, 16)
_WANTED = 5.0
_WARM_UP_S = 1.0
_END_TIMEOUT_S = 10.0


def main() -> None:
    """Runs the benchmark."""
    options = _options()
    torch.set_num_threads(1)
    python = _make_venv()
    with (
        tempfile.TemporaryDirectory() as name,
        Hivemind.running(python) as hivemind,
        bare_server(encoder(free_port()), Path(name)) as target,
    ):
        rates = asyncio.run(_measure(hivemind, target, options.num_rounds, options.seconds))
    console = Console()
    console.width = max(console.width, 120)
    console.print(_table(rates))
    _draw(rates, _PLOT)
    console.print(f"Plot: {_PLOT}")
    print(json.dumps(_result(rates)), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="about what a round takes (default: 3)")
    parser.add_argument("--num-rounds", type=int, default=5, help="of each side (default: 5)")
    return parser.parse_args()


def _make_venv() -> Path:
    """Makes hivemind's virtual environment if it is not there; returns its Python."""
    python, ready = _VENV / "bin/python", _VENV / ".ready"
    wanted = "\n".join(_REQUIREMENTS)
    if not ready.is_file() or ready.read_text() != wanted:
        print(f"installing hivemind into {_VENV} (a few minutes)", file=sys.stderr, flush=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
        constraints = str(_REPOSITORY / "constraints.txt")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(_VENV)], check=True)  # noqa: S603
        subprocess.run([*pip, "-c", constraints, *_REQUIREMENTS], check=True)  # noqa: S603
        ready.write_text(wanted)
    return python


class Hivemind:
    """hivemind's server and its clients, in processes of their own.

    Args:
        clients: the process that measures.
    """

    def __init__(self, clients: subprocess.Popen[str]) -> None:
        self._clients = clients

    def pairs_per_s(self, num_clients: int, seconds: float) -> float:
        """Lets clients do pairs for a time; returns all their pairs a second."""
        answer = _ask(self._clients, {"num_clients": num_clients, "seconds": seconds})
        return float(answer["num_pairs"] / answer["elapsed_s"])

    @classmethod
    @contextlib.contextmanager
    def running(cls, python: Path) -> Iterator[Self]:
        """Starts both and ends them, with all they started, when done."""
        folder = resolve_folder(EncoderConfig().path)
        with _process(python, "server", str(folder)) as server:
            address = _read(server)["address"]
            with _process(python, "clients", address) as clients:
                _read(clients)
                yield cls(clients)


@contextlib.contextmanager
def _process(python: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a role of `peers_hivemind`; its daemons don't always end with it, so they are ended here."""
    command = [str(python), str(Path(__file__).with_name("peers_hivemind.py")), *arguments]
    log = _VENV.with_name(f"{arguments[0]}.log")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with (
        log.open("w") as errors,
        subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        try:
            yield process
        finally:
            started = psutil.Process(process.pid).children(recursive=True)
            try:
                if process.stdin is not None:
                    process.stdin.close()
                # Not `communicate`: daemons that are left over hold the output open.
                process.wait(timeout=_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
            for left in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            psutil.wait_procs(started, timeout=_END_TIMEOUT_S)


def _ask(process: subprocess.Popen[str], question: dict[str, Any]) -> dict[str, Any]:
    if process.stdin is None:
        raise RuntimeError("stdin: got none, expected a pipe")
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    return _read(process)


def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Reads one line of JSON.

    Raises:
        RuntimeError: the process has ended.
    """
    line = "" if process.stdout is None else process.stdout.readline()
    if not line:
        raise RuntimeError(f"hivemind: got no answer, expected a line; its logs are in {_VENV.parent}")
    answer: dict[str, Any] = json.loads(line)
    return answer


async def _measure(
    hivemind: Hivemind, target: str, num_rounds: int, seconds: float
) -> dict[str, dict[int, list[float]]]:
    """Returns pairs a second of each round, by side and number of clients."""
    tenants = open_tenants(target, max(_NUM_TENANTS), 384, 3)
    rates: dict[str, dict[int, list[float]]] = {"hivemind": {}, "ours": {}}
    for num_tenants in _NUM_TENANTS:
        print(f"peers: {num_tenants} clients", file=sys.stderr, flush=True)
        used = tenants[:num_tenants]
        num_pairs = num_pairs_for(seconds, await warm_up(used, _SIZE), num_tenants)
        hivemind.pairs_per_s(num_tenants, _WARM_UP_S)
        ours, theirs = list[float](), list[float]()
        for _ in range(num_rounds):
            theirs.append(hivemind.pairs_per_s(num_tenants, seconds))
            ours.append((await run_round(used, _SIZE, num_pairs)).pairs_per_s)
        rates["hivemind"][num_tenants], rates["ours"][num_tenants] = theirs, ours
    await close_all(tenants)
    return rates


def _ratio(rates: dict[str, dict[int, list[float]]], num_tenants: int) -> float:
    return statistics.median(rates["ours"][num_tenants]) / statistics.median(rates["hivemind"][num_tenants])


def _table(rates: dict[str, dict[int, list[float]]]) -> Table:
    table = Table(
        title="MiniLM's upper 3 layers, 8 x 1, forward with its backward pass, pairs a second of all clients",
        caption="Medians of rounds that alternate (least and most in brackets). Ours also runs the codec, 32 "
        "wide, and returns its gradients; hivemind's messages are the states themselves, 384 wide. hivemind: "
        f"4 connection handlers. Wanted at 16: at least {_WANTED:g}.",
    )
    for heading in ("clients", "hivemind", "ours", "ours / hivemind"):
        table.add_column(heading, justify="right")
    for num_tenants in _NUM_TENANTS:
        shown = [
            f"{statistics.median(rounds):.1f} ({min(rounds):.0f}-{max(rounds):.0f})"
            for rounds in (rates["hivemind"][num_tenants], rates["ours"][num_tenants])
        ]
        table.add_row(str(num_tenants), *shown, f"{_ratio(rates, num_tenants):.2f}")
    return table


def _draw(rates: dict[str, dict[int, list[float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(4, 3.5))
    for offset, (side, by_number) in enumerate(rates.items()):
        places = [index + 0.4 * offset - 0.2 for index in range(len(by_number))]
        panel.bar(places, [statistics.median(rounds) for rounds in by_number.values()], 0.38, label=side)
    panel.set_xticks(range(len(_NUM_TENANTS)), [str(number) for number in _NUM_TENANTS])
    panel.set_xlabel("clients")
    panel.set_ylabel("pairs a second")
    panel.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _result(rates: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    ratios = {f"small_{number}_vs_hivemind": round(_ratio(rates, number), 4) for number in (16, 1)}
    pairs = {
        side: {f"{number}_small": round(statistics.median(rounds), 4) for number, rounds in by_number.items()}
        for side, by_number in rates.items()
    }
    return {**ratios, "pairs_per_s": pairs}


if __name__ == "__main__":
    main()
