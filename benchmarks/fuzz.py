"""Can input that lies crash the teacher, or disturb anybody else?

    python -m benchmarks.fuzz [--inputs 200000]

Three ways in, all with a toy teacher. Tensors that hypothesis makes up go to the wire decoder. Frames that it
makes up, mixed with good ones, go to conversations in this process. Good streams with broken bytes go through
a real server, many at a time. Meanwhile a bystander, a deterministic conversation of another tenant, asks the
same thing again and again and must hear the same. Prints a table and, as its last line, one JSON object;
exits with 1 if anything crashed, was disturbed, or was refused without a reason.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from benchmarks import teachers
from benchmarks.bare_server import bare_server
from benchmarks.fuzz_found import Found, heard
from benchmarks.fuzz_frames import frames, good_stream, tensors_of_any_kind
from benchmarks.fuzz_streams import send_streams
from preceptor import wire
from services.teacher.conversation import Conversation
from services.teacher.limits import LimitsConfig
from services.teacher.loading import load_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from preceptor.v1 import teacher_pb2 as pb
    from services.teacher.engine import Engine

ExampleT = TypeVar("ExampleT")

_FRAMES_AN_EXAMPLE = 16
_PATIENCE_S = 60.0
_MAX_GROWTH_MB = 50.0
_SHARES = {"tensors": 0.55, "frames": 0.4, "streams": 0.05}


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=200_000, help="tensors, frames and broken frames")
    wanted = parser.parse_args().inputs
    torch.set_num_threads(1)
    found = Found()
    with tempfile.TemporaryDirectory() as name:
        config = teachers.module(teachers.free_port(), Path(name))
        _tell("tensors")
        _examples(
            tensors_of_any_kind(), round(wanted * _SHARES["tensors"]), lambda each: _decode(each, found)
        )
        _tell("frames")
        engine = load_engine(config)
        hidden_dim = engine.teacher.facts.hidden_size
        with asyncio.Runner() as runner:
            desk = _Desk(engine, hidden_dim, found, runner)
            _examples(frames(), round(wanted * _SHARES["frames"]), desk.take)
            desk.look_at_bystander()
        engine.stop()
        _tell("streams")
        with bare_server(config, Path(name)) as target:
            asyncio.run(send_streams(target, hidden_dim, round(wanted * _SHARES["streams"]), found))
    return _report(found)


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _examples(
    strategy: st.SearchStrategy[ExampleT], number: int, take: Callable[[list[ExampleT]], None]
) -> None:
    """Hands on lists of what hypothesis makes up, until there were so many of it."""
    count = 0
    while count < number:

        @settings(
            max_examples=min(2000, max((number - count) // _FRAMES_AN_EXAMPLE, 1)),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(strategy, min_size=_FRAMES_AN_EXAMPLE, max_size=_FRAMES_AN_EXAMPLE))
        def run(examples: list[ExampleT]) -> None:
            nonlocal count
            count += len(examples)
            take(examples)

        run()
        print(f"  {count}", file=sys.stderr, flush=True)


def _decode(examples: Iterable[object], found: Found) -> None:
    for tensor in examples:
        found.inputs["tensors"] += 1
        try:
            wire.decode(tensor, field="tensor")  # type: ignore[arg-type]
        except wire.WireError:
            found.reasons["WireError"] += 1
        except Exception as error:  # noqa: BLE001 - what is looked for
            found.crashes.append(f"tensor: {type(error).__name__}: {error}")


class _Desk:
    """Conversations in this process: one for each example, and a bystander's."""

    def __init__(self, engine: Engine, hidden_dim: int, found: Found, runner: asyncio.Runner) -> None:
        self._engine, self._found, self._runner = engine, found, runner
        self._stream = good_stream(hidden_dim)
        self._bystander = good_stream(hidden_dim, deterministic=True)
        self._expected = runner.run(self._ask_bystander())
        self._num_examples = 0

    def take(self, examples: list[pb.ConverseRequest]) -> None:
        """Has one conversation of made-up frames, after the good ones in every second example."""
        self._num_examples += 1
        good = self._stream[: self._num_examples % 5] if self._num_examples % 2 else []
        self._found.inputs["frames"] += len(examples)
        self._runner.run(self._converse([*good, *examples], self._found.take))
        if self._num_examples % 50 == 0:
            self.look_at_bystander()

    def look_at_bystander(self) -> None:
        """Has the bystander ask again, and compares."""
        self._found.bystanders_turns += 1
        if self._runner.run(self._ask_bystander()) != self._expected:
            self._found.disturbed_turns += 1

    async def _ask_bystander(self) -> dict[tuple[str, int], bytes]:
        answers: list[pb.ConverseResponse] = []
        await self._converse(self._bystander, answers.append, waits=True)
        return heard(answers)

    async def _converse(
        self,
        sent: Iterable[pb.ConverseRequest],
        send: Callable[[pb.ConverseResponse], None],
        *,
        waits: bool = False,
    ) -> None:
        conversation = Conversation(
            "fuzz", engine=self._engine, limits=LimitsConfig(), default_split_layer=2, send=send
        )
        try:
            for frame in sent:
                if waits:
                    await conversation.settle()
                conversation.receive(frame)
                if conversation.closed:
                    break
            async with asyncio.timeout(_PATIENCE_S):
                await conversation.settle()
        except Exception as error:  # noqa: BLE001 - what is looked for
            self._found.crashes.append(f"conversation: {type(error).__name__}: {error}")
        finally:
            conversation.give_up()


def _report(found: Found) -> int:
    table = Table(title=f"{found.inputs.total()} inputs that lie")
    table.add_column("what came of them")
    table.add_column("", justify="right")
    for name, number in [*found.inputs.items(), *found.reasons.most_common()]:
        table.add_row(name, str(number))
    table.add_row("turns of bystanders", str(found.bystanders_turns))
    console = Console()
    console.print(table)
    for crash in found.crashes[:10]:
        console.print(crash, markup=False)
    result = {
        "inputs": found.inputs.total(),
        "crashes": len(found.crashes),
        "disturbed_turns": found.disturbed_turns,
        "unknown_reasons": found.num_unknown,
        "memory_growth_mb": round(found.growth_mb, 1),
    }
    print(json.dumps(result))
    bad = found.crashes or found.disturbed_turns or found.num_unknown or found.growth_mb > _MAX_GROWTH_MB
    return 1 if bad else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
