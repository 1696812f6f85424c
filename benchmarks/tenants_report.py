"""Tables and the plot of `benchmarks.tenants`."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.pairs import SIZES
from benchmarks.tenants_fairness import p99

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.memory import Memory
    from benchmarks.tenants_exact import Exactness
    from benchmarks.tenants_fairness import Fairness
    from benchmarks.tenants_throughput import Measurements

__all__ = ["draw", "tables"]

_VARIANTS = ("dedicated", "serial", "ours")
_MIB = 2**20


def tables(
    throughput: Measurements | None,
    memory: Memory | None,
    fairness: Fairness | None,
    exactness: Exactness | None,
) -> list[Table]:
    """Returns a table for each part that was measured."""
    found = []
    if throughput is not None:
        found.append(_throughput_table(throughput))
    if fairness is not None:
        found.append(_fairness_table(fairness))
    if exactness is not None:
        found.append(_exactness_table(exactness))
    if memory is not None:
        found.append(_memory_table(memory))
    return found


def _throughput_table(measured: Measurements) -> Table:
    table = Table(
        title="Exchanges with their backward passes, pairs a second of all tenants together",
        caption="MiniLM's upper 3 layers, reading replace, linear codec of 32, fixed during a round; one "
        "torch thread a server and one a dedicated tenant. Medians of rounds in turns (least and most in "
        "brackets). Tenants a pass: mean over exchanges / backward passes of ours. Wanted, ours over serial: "
        "at least 4 (16 small), 2.2 (16 medium), 1.3 (16 large), 0.95 (1); retained at least 90 % (16 small "
        "and medium).",
    )
    for heading in ("size", "tenants", *_VARIANTS, "ours / serial", "tenants a pass", "retained"):
        table.add_column(heading, justify="right")
    for cell in measured.rates["ours"]:
        size = SIZES[cell.size]
        rates = [_rate(measured.rates.get(variant, {}).get(cell)) for variant in _VARIANTS]
        sharing = measured.mean_num_tenants(cell) or (0.0, 0.0)
        table.add_row(
            f"{cell.size} {size.num_rows} x {size.message_len}",
            str(cell.num_tenants),
            *rates,
            f"{measured.ratio(cell) or 0.0:.2f}",
            f"{sharing[0]:.1f} / {sharing[1]:.1f}",
            f"{measured.retained_share(cell) or 0.0:.1%}",
        )
    return table


def _rate(rounds: list[float] | None) -> str:
    if not rounds:
        return "-"
    return f"{statistics.median(rounds):.1f} ({min(rounds):.0f}-{max(rounds):.0f})"


def _fairness_table(fairness: Fairness) -> Table:
    table = Table(
        title="15 light tenants beside one that offers 10 times their load, small turns",
        caption=f"Jain's index over the light tenants' tokens {fairness.jain:.4f} (wanted: at least 0.98); "
        f"p99 beside the heavy one / all light {fairness.p99_ratio:.2f} (wanted: at most 2). The heavy one "
        f"was served {fairness.heavy_share:.1f} times what a light one was.",
    )
    for heading in ("light tenants", "pairs", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for name, latencies in (
        ("beside the heavy one", fairness.beside_heavy_s),
        ("all light", fairness.all_light_s),
    ):
        both = statistics.median(latencies), p99(latencies)
        table.add_row(name, str(len(latencies)), *(f"{latency * 1000:.1f}" for latency in both))
    return table


def _exactness_table(exactness: Exactness) -> Table:
    table = Table(
        title="Replies and gradients of a tenant with 15 others in flight, against alone; float32",
        caption="Largest |a - b| / |b| of the norms of replies, message gradients and codec gradients, for "
        "small, medium and mixed turns. Wanted: at most 1e-5; 0 where deterministic. Deterministic / default "
        f"pairs a second, 16 small: {exactness.throughput_ratio:.3f}.",
    )
    for heading in ("mode", "largest difference", "most tenants in a pass"):
        table.add_column(heading, justify="right")
    for name, difference in (("default", exactness.default), ("deterministic", exactness.deterministic)):
        table.add_row(name, f"{difference.max_relative:.2e}", str(difference.max_num_tenants))
    return table


def _memory_table(memory: Memory) -> Table:
    table = Table(
        title="Memory of 8 tenants of SmolLM2, MiB",
        caption="Proportional set size of all processes, at work; on a GPU, its memory. Dedicated / ours, "
        f"what the teacher adds: {memory.ratio:.2f} (wanted: at least 4).",
    )
    for heading in ("", "all processes", "added by the teacher"):
        table.add_column(heading, justify="right")
    table.add_row("no teacher", f"{memory.tenants / _MIB:.0f}", "")
    for name, total in (("dedicated", memory.dedicated), ("ours", memory.ours)):
        table.add_row(name, f"{total / _MIB:.0f}", f"{(total - memory.tenants) / _MIB:.0f}")
    return table


def draw(measured: Measurements, path: Path) -> None:
    """Draws bars of pairs a second by size, number of tenants and variant, with whiskers over the rounds."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    cells = list(measured.rates["ours"])
    sizes = list(dict.fromkeys(cell.size for cell in cells))
    figure, panels = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 3.5), squeeze=False)
    for panel, size in zip(panels[0], sizes, strict=True):
        shown = [cell for cell in cells if cell.size == size]
        for offset, variant in enumerate(_VARIANTS):
            rounds = [measured.rates.get(variant, {}).get(cell, [0.0]) for cell in shown]
            medians = [statistics.median(rates) for rates in rounds]
            whiskers = [
                [median - min(rates) for median, rates in zip(medians, rounds, strict=True)],
                [max(rates) - median for median, rates in zip(medians, rounds, strict=True)],
            ]
            places = [index + 0.27 * (offset - 1) for index in range(len(shown))]
            panel.bar(places, medians, 0.25, yerr=whiskers, label=variant)
        panel.set_xticks(range(len(shown)), [str(cell.num_tenants) for cell in shown])
        panel.set_xlabel("tenants")
        panel.set_title(f"{size}: {SIZES[size].num_rows} x {SIZES[size].message_len}")
    panels[0][0].set_ylabel("pairs a second")
    panels[0][0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
