"""Measures the memory that a teacher adds to its tenants: a teacher each, and one that is served.

Memory is the proportional set size (PSS) of this process and all below it: a page that several processes map
counts once. What a teacher adds is that, less what the same tenants take when there is no teacher anywhere.
Tenants are processes that were started afresh, not forked, and are at work while they are measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import psutil
import torch

from benchmarks.bare_server import bare_server
from benchmarks.pairs import SIZES, Tenant
from benchmarks.tenants_dedicated import local_pair
from services.teacher.config import DecoderConfig, ServiceConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    from benchmarks.pairs import Size

__all__ = ["Memory", "PeakMemory", "measure_memory"]

_SIZE = SIZES["small"]
_HIDDEN_SIZE = 576
_NUM_WARM_UP_PAIRS = 3
_NUM_SAMPLES = 5
_SAMPLE_PAUSE_S = 0.3
_PEAK_PAUSE_S = 1.0
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Memory:
    """Bytes in use, all processes together.

    Attributes:
        tenants: the tenants without a teacher.
        dedicated: the tenants with a teacher each.
        ours: the tenants and the server of their one teacher.
    """

    tenants: int
    dedicated: int
    ours: int

    @property
    def ratio(self) -> float:
        """How many times as much dedicated teachers add as a shared one."""
        return (self.dedicated - self.tenants) / (self.ours - self.tenants)


def measure_memory(folder: Path, port: int, num_tenants: int, *, num_gpus: float) -> Memory:
    """Measures with SmolLM2, saved in transformers' format as its users have it.

    Args:
        folder: for the model's files.
        port: for the server.
        num_tenants: how many.
        num_gpus: 1 to compute, and to measure memory, on a GPU.
    """
    print("memory: saving SmolLM2", file=sys.stderr, flush=True)
    saver = _SPAWN.Process(target=_save_decoder, args=(str(folder / "smollm2"),))
    saver.start()
    saver.join()
    if saver.exitcode:
        raise RuntimeError(f"saving SmolLM2: got exit code {saver.exitcode}, expected 0")
    config = ServiceConfig(
        name="smollm2",
        auth="none",
        model=DecoderConfig(path=str(folder / "smollm2")),
        port=port,
        num_gpus=num_gpus,
    )
    print("memory: tenants", file=sys.stderr, flush=True)
    with _tenants("none", config, num_tenants):
        tenants = _used_bytes(config)
    print("memory: dedicated", file=sys.stderr, flush=True)
    with _tenants("dedicated", config, num_tenants):
        dedicated = _used_bytes(config)
    print("memory: ours", file=sys.stderr, flush=True)
    with bare_server(config, folder), _tenants("ours", config, num_tenants):
        ours = _used_bytes(config)
    return Memory(tenants, dedicated, ours)


def _save_decoder(folder: str) -> None:
    """Reads SmolLM2 from the GGUF file of its package and saves it in bfloat16, as it is published.

    Computing in float32 then takes memory of its own for each teacher. Weights saved in float32 would be
    mapped from the file, and teachers on one machine would share them without a server.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from services.teacher.families import resolve_folder
    from services.teacher.families.decoder import find_gguf

    package = resolve_folder(DecoderConfig().path)
    files = {"gguf_file": find_gguf(package, None), "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(package, dtype=torch.float32, **files)
    # The weights are plain now, but the model still counts as quantized, and as such can't be saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, **files).save_pretrained(folder)


@contextlib.contextmanager
def _tenants(kind: str, config: ServiceConfig, num_tenants: int) -> Iterator[None]:
    """Runs tenants in processes of their own; they are at work while this is open."""
    pipes = [_SPAWN.Pipe() for _ in range(num_tenants)]
    processes = [
        _SPAWN.Process(target=_tenant, args=(pipe[1], kind, config, seed), daemon=True)
        for seed, pipe in enumerate(pipes)
    ]
    for (_, theirs), process in zip(pipes, processes, strict=True):
        process.start()
        theirs.close()  # a tenant that fails then ends `recv`
    try:
        for connection, _ in pipes:
            connection.recv()
        # Nobody works while others still load, which would take the longer for it.
        for connection, _ in pipes:
            connection.send("work")
        for connection, _ in pipes:
            connection.recv()
        yield
    finally:
        for (connection, _), process in zip(pipes, processes, strict=True):
            with contextlib.suppress(BrokenPipeError):
                connection.send(None)
            process.join()


def _tenant(connection: Connection, kind: str, config: ServiceConfig, seed: int) -> None:
    """Loads, says so, is told to work, says when it does, and goes on until it is told to end."""
    torch.set_num_threads(1)
    if kind == "ours":
        asyncio.run(_talk(connection, config, seed))
        return
    pair: Callable[[Size], None] | None = None
    if kind == "dedicated":
        from services.teacher.loading import load_frozen

        teacher = load_frozen(config)
        pair = local_pair(teacher, seed, teacher.facts.num_layers // 2)
    connection.send("loaded")
    connection.recv()
    if pair is None:
        connection.send("at work")
        connection.recv()
        return
    for _ in range(_NUM_WARM_UP_PAIRS):
        pair(_SIZE)
    connection.send("at work")
    while not connection.poll():
        pair(_SIZE)


async def _talk(connection: Connection, config: ServiceConfig, seed: int) -> None:
    target = f"{config.host}:{config.port}"
    tenant = Tenant(target, f"tenant-{seed}", hidden_size=_HIDDEN_SIZE, seed=seed, split_layer=None)
    tenant.prepare(_SIZE)
    connection.send("loaded")
    connection.recv()
    await tenant.talk(_SIZE, lambda num_done: num_done < _NUM_WARM_UP_PAIRS)
    connection.send("at work")
    await tenant.talk(_SIZE, lambda _: not connection.poll())
    await tenant.close()


def _used_bytes(config: ServiceConfig) -> int:
    """Returns the median of a few looks at what is in use."""
    samples = []
    for _ in range(_NUM_SAMPLES):
        time.sleep(_SAMPLE_PAUSE_S)
        samples.append(_gpu_bytes() if config.num_gpus else _pss_bytes())
    return int(statistics.median(samples))


def _pss_bytes() -> int:
    own = psutil.Process()
    return sum(process.memory_full_info().pss for process in [own, *own.children(recursive=True)])


class PeakMemory:
    """Watches the memory of all processes below this one while open.

    Attributes:
        peak_bytes: the most PSS that was seen at once.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._ended.wait(_PEAK_PAUSE_S):
            used_bytes = 0
            for process in own.children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    used_bytes += process.memory_full_info().pss
            self.peak_bytes = max(self.peak_bytes, used_bytes)


def _gpu_bytes() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free
