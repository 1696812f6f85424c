"""Padding against block-diagonal attention: how turns of different lengths should share a pass.

    python -m benchmarks.packing [--device cuda]

MiniLM's upper three layers, forward and backward, for 16 turns of 8 rows each:

- `longest`: every sequence padded to the longest of all, one pass;
- `buckets`: those of similar length padded together, a pass a bucket (`services.teacher.packing`);
- `block diagonal`: sequences behind each other in rows of 128 positions, each attending to itself only.

Prints a table, then one JSON object: milliseconds by workload and way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from services.teacher.config import EncoderConfig, ServiceConfig
from services.teacher.families import load_teacher
from services.teacher.packing import length_bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

_NUM_TURNS = 16
_NUM_ROWS = 8
_SPLIT_LAYER = 3
_CAPACITY = 128
_REPEATS = 9
_WORKLOADS: dict[str, Callable[[int], int]] = {
    "equal": lambda _: 1,
    "similar": lambda draw: 12 + draw % 9,
    "ragged": lambda draw: 1 + draw % 64,
}


def main() -> None:
    """Measures all ways on all workloads, interleaved."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layers: Any = load_teacher(ServiceConfig(auth="none", model=EncoderConfig()), device, dtype)
    blocks: Sequence[nn.Module] = layers._blocks[_SPLIT_LAYER:]  # noqa: SLF001 - the bare layers are measured
    torch.manual_seed(0)
    results = {name: _measure(blocks, _sequences(name, device, dtype)) for name in _WORKLOADS}
    table = Table(
        "workload", *next(iter(results.values())), title=f"one pass and its gradients, ms ({device})"
    )
    for name, row in results.items():
        table.add_row(name, *(f"{milliseconds:.1f}" for milliseconds in row.values()))
    Console().print(table)
    print(json.dumps({"device": device.type, **results}))


def _sequences(workload: str, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Draws the states of all rows, [length, 384] each; the rows of a turn have one length."""
    draws = torch.randint(0, 10_000, (_NUM_TURNS,)).tolist()
    lengths = [_WORKLOADS[workload](draw) for draw in draws for _ in range(_NUM_ROWS)]
    return [torch.randn(length, 384, device=device, dtype=dtype) for length in lengths]


def _measure(blocks: Sequence[nn.Module], sequences: Sequence[Tensor]) -> dict[str, float]:
    ways: dict[str, Callable[[Sequence[Tensor]], Iterator[tuple[Tensor, Tensor]]]] = {
        "longest": _longest,
        "buckets": _buckets,
        "block diagonal": _block_diagonal,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(_REPEATS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            for states, mask in way(sequences):
                _pass(blocks, states.requires_grad_(), mask)
            if states.is_cuda:
                torch.cuda.synchronize()
            if repeat:  # the first one warms up
                times[name].append((time.perf_counter() - start) * 1000)
    return {name: round(statistics.median(each), 2) for name, each in times.items()}


def _pass(blocks: Sequence[nn.Module], states: Tensor, mask: Tensor) -> None:
    hidden_states = states
    for block in blocks:
        hidden_states = block(hidden_states, attention_mask=mask)
    hidden_states.float().square().sum().backward()  # type: ignore[no-untyped-call]


def _longest(sequences: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pads all to the longest, [B, L, D], with a mask [B, 1, L, L]."""
    length = max(len(each) for each in sequences)
    states = torch.stack([functional.pad(each, (0, 0, 0, length - len(each))) for each in sequences])
    valid = torch.tensor([[n < len(each) for n in range(length)] for each in sequences], device=states.device)
    yield states, valid[:, None, None, :].expand(-1, 1, length, -1)


def _buckets(sequences: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pads those of one bucket together."""
    buckets: dict[int, list[Tensor]] = {}
    for each in sequences:
        buckets.setdefault(length_bucket(len(each)), []).append(each)
    for bucket in buckets.values():
        yield from _longest(bucket)


def _block_diagonal(sequences: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Fills rows of `_CAPACITY` positions, first fit, [R, C, D], with a mask [R, 1, C, C]."""
    rows: list[list[Tensor]] = []
    for each in sorted(sequences, key=len, reverse=True):
        fitting = (row for row in rows if sum(map(len, row)) + len(each) <= _CAPACITY)
        row = next(fitting, None)
        if row is None:
            row = []
            rows.append(row)
        row.append(each)
    device = sequences[0].device
    segments = torch.full((len(rows), _CAPACITY), -1, device=device)
    for index, row in enumerate(rows):
        owners = [number for number, each in enumerate(row) for _ in range(len(each))]
        segments[index, : len(owners)] = torch.tensor(owners, device=device)
    states = torch.stack(
        [functional.pad(torch.cat(row), (0, 0, 0, _CAPACITY - sum(map(len, row)))) for row in rows]
    )
    yield states, (segments[:, None, :, None] == segments[:, None, None, :])


if __name__ == "__main__":
    main()
