"""Does a teacher stay honest at twice its capacity?

    python -m benchmarks.load [--seconds 60] [--conversations 64] [--tenants 8]

First a closed loop says how many pairs (an exchange and its backward pass) of small turns a second MiniLM's
upper layers do on a bare server. Then a fresh server is offered twice as many. It knows its tenants by their
tokens, and its queue (`limits.max_queued_tokens`) holds as many exchanges as are served in 1.5 seconds.

Every conversation begins pairs at times of its own, a Poisson process, whether or not those before them are
done. At most `Limits.max_turns_in_flight` of its pairs are under way, those that wait to come back included;
a pair that has to wait for that counts as deferred, and its time runs. A turn that is refused comes back
after the time that the teacher gave, with the client's jitter, for as long as the run lasts. Each attempt
counts as a turn. A turn that is not refused was accepted, and must be answered: what was accepted is waited
for after the run, with the gradients of what was replied, but nothing begins or comes back then.

Prints a table and, as its last line, one JSON object; exits with 1 if a turn was lost, refused without a
time to come back, or anything else went wrong. Memory is the server's largest resident set in the run's last
quarter over that in its second one: after the first, caches and pools are filled, and what waits for
gradients comes and goes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from rich.console import Console

from benchmarks.bare_server import bare_server
from benchmarks.load_line import Line
from benchmarks.load_offer import Offer, Tally, closed_loop, due_times
from benchmarks.load_report import Outcome
from benchmarks.pairs import SIZES
from benchmarks.teachers import encoder, free_port
from services.teacher.tenants import Tenant, Tenants, new_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from services.teacher.config import ServiceConfig

_SIZE = SIZES["small"]
_OVERLOAD = 2.0
_QUEUE_S = 1.5
_MAX_CAPACITY_S = 10.0
_QUARTERS = 4
_LOOKS = 15  # at the server's memory, a quarter of the run; it is told of three times
_TOLD = ("answered", "refused")


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload (default: 60)")
    parser.add_argument("--conversations", type=int, default=64, help="of all tenants (default: 64)")
    parser.add_argument("--tenants", type=int, default=8, help="(default: 8)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with tempfile.TemporaryDirectory() as name:
        outcome = _run(Path(name), options.seconds, options.conversations, options.tenants)
    console = Console()
    console.width = max(console.width, 160)
    console.print(outcome.table())
    for problem in outcome.other_errors[:10]:
        console.print(problem, markup=False)
    print(json.dumps(outcome.json()), flush=True)
    return 0 if outcome.is_honest else 1


def _run(folder: Path, seconds: float, num_conversations: int, num_tenants: int) -> Outcome:
    tokens, config = _guarded(folder, num_tenants)
    owners = [f"tenant-{index % num_tenants}" for index in range(num_conversations)]
    with asyncio.Runner() as runner:  # one loop for both: gRPC does not let go of its first one
        with bare_server(config, folder) as target:
            seconds_of_loop = min(_MAX_CAPACITY_S, seconds)
            capacity = runner.run(_capacity(target, owners, tokens, seconds_of_loop))
        queued = math.ceil(_QUEUE_S * capacity * _SIZE.num_tokens)
        _tell(f"capacity: {capacity:.1f} pairs a second; the queue holds {queued} tokens")
        limits = config.limits.model_copy(update={"max_queued_tokens": queued})
        config = config.model_copy(update={"limits": limits, "port": free_port()})
        with bare_server(config, folder) as target:
            return runner.run(_overload(target, owners, tokens, capacity, seconds))


def _guarded(folder: Path, num_tenants: int) -> tuple[dict[str, str], ServiceConfig]:
    """Returns tokens by tenant and the config of a teacher that asks for them."""
    keys = {name: new_key(name) for name in (f"tenant-{index}" for index in range(num_tenants))}
    path = folder / "tenants.yaml"
    Tenants(tenants={name: Tenant(keys=(key,)) for name, (_, key) in keys.items()}).save(path)
    tokens = {name: token for name, (token, _) in keys.items()}
    return tokens, encoder(free_port()).model_copy(update={"auth": "tokens", "tenants": path})


@contextlib.asynccontextmanager
async def _lines(target: str, owners: Sequence[str], tokens: Mapping[str, str]) -> AsyncIterator[list[Line]]:
    """Has a conversation for each of the owners, open and used once."""
    lines = [Line(target, owner, tokens[owner], size=_SIZE, seed=seed) for seed, owner in enumerate(owners)]
    try:
        for line in lines:
            await line.open()
        await closed_loop(lines, 0.0)
        yield lines
    finally:
        for line in lines:
            await line.close()


async def _capacity(target: str, owners: Sequence[str], tokens: Mapping[str, str], seconds: float) -> float:
    async with _lines(target, owners, tokens) as lines:
        await closed_loop(lines, seconds / _QUARTERS)
        return await closed_loop(lines, seconds)


async def _overload(
    target: str, owners: Sequence[str], tokens: Mapping[str, str], capacity: float, seconds: float
) -> Outcome:
    (server,) = psutil.Process().children()
    tallies = {tenant: Tally() for tenant in tokens}
    async with _lines(target, owners, tokens) as lines:
        start_s = asyncio.get_running_loop().time()
        watch = asyncio.create_task(_watch(server, tallies, seconds))
        async with asyncio.TaskGroup() as group:
            for seed, line in enumerate(lines):
                times = due_times(_OVERLOAD * capacity / len(lines), seconds, seed)
                offer = Offer(line, tallies[line.tenant], start_s, start_s + seconds, seed)
                group.create_task(offer.run(times))
        growth = await watch
        problems = [f"{line.tenant}: {problem}" for line in lines for problem in line.problems]
        num_short = sum(line.num_short for line in lines)
    return Outcome(seconds, capacity, tallies, problems, num_short, growth / 2**20)


async def _watch(server: psutil.Process, tallies: Mapping[str, Tally], seconds: float) -> int:
    """Tells how it goes; returns by how many bytes the server's memory grew."""
    clock = asyncio.get_running_loop().time
    start_s, peaks = clock(), [0] * _QUARTERS
    for step in range(_QUARTERS * _LOOKS):
        await asyncio.sleep(max(start_s + (step + 1) * seconds / (_QUARTERS * _LOOKS) - clock(), 0.0))
        rss = server.memory_info().rss
        peaks[step // _LOOKS] = max(peaks[step // _LOOKS], rss)
        if (step + 1) % (_LOOKS // 3) == 0:
            counts = [sum(getattr(tally, name) for tally in tallies.values()) for name in _TOLD]
            told = ", ".join(f"{count} {name}" for count, name in zip(counts, _TOLD, strict=True))
            _tell(f"  {clock() - start_s:.0f} s: {told}, {rss / 2**20:.0f} MiB")
    return peaks[-1] - peaks[1]


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
