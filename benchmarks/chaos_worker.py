"""One student of `benchmarks.chaos`, in a process of its own: it trains, a step when it is told to.

    python -m benchmarks.chaos_worker CONFIG.json

It reads commands, and tells what it has done, in lines of JSON on its standard input and output; it ends with
its input. After each step it saves all that it needs to go on, so that it may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.student import SmallStudent, make_batches
from student_client import ClientOptions, TeacherError, TeacherTalk, TeacherUnavailableError, losses
from student_client.options import TlsOptions

__all__ = ["POINTS", "WorkerConfig", "checkpoint_of"]

# Where a step can be held: before its message, between reply and gradients, before the codec is sent.
POINTS = ("before", "between", "update")

_PATIENCE_S = 120.0
_COMMAND_TIMEOUT_S = 600.0
_WIDTH, _NUM_HEADS = 16, 2
_MESSAGE_DIM, _MESSAGE_LEN, _CODEC_WIDTH = 8, 4, 1024
_NUM_BATCHES, _NUM_ROWS, _NUM_WORDS = 5, 8, (4, 8)


@dataclass(frozen=True)
class WorkerConfig:
    """What a student needs to know; `folder` keeps its checkpoint."""

    address: str
    folder: str
    token_file: str
    ca_file: str
    seed: int

    def options(self) -> ClientOptions:
        """Returns deadlines that are short beside those of a user: faults are the rule here."""
        return ClientOptions(
            connect_timeout_s=3,
            answer_timeout_s=4,
            deadline_s=_PATIENCE_S,
            initial_backoff_s=0.05,
            token_file=Path(self.token_file),
            tls=TlsOptions(ca_file=Path(self.ca_file)),
        )


def checkpoint_of(folder: Path) -> dict[str, Any]:
    """Returns what a student has saved last: step, losses, weights and the optimizer's state."""
    state: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return state


class _Commands:
    """What this student is told; waits for it, though not without end."""

    def __init__(self) -> None:
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> dict[str, Any]:
        return self._lines.get(timeout=_COMMAND_TIMEOUT_S)

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(json.loads(line))
        os._exit(0)  # whoever started this is gone


class _Student:
    """Trains step by step."""

    def __init__(self, config: WorkerConfig) -> None:
        self._folder = Path(config.folder)
        self._batches = make_batches(_NUM_BATCHES, _NUM_ROWS, _NUM_WORDS, as_tensors=True, seed=config.seed)
        torch.manual_seed(config.seed)
        self._student = SmallStudent(_WIDTH, _NUM_HEADS)
        self._talk = _connect(config)
        self._all = torch.nn.ModuleList([self._student, self._talk])
        self._optimizer = torch.optim.AdamW(self._all.parameters(), lr=1e-3)
        self._losses: list[float] = []
        self._held: dict[str, Any] | None = None
        self._commands = _Commands()
        if (self._folder / "checkpoint.pt").exists():
            state = checkpoint_of(self._folder)
            self._all.load_state_dict(state["weights"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._losses = state["losses"]

    def run(self) -> None:
        """Does what it is told until its input ends."""
        _tell(ready=len(self._losses))
        while True:
            command = self._commands.next()
            self._held = command["hold"]
            while len(self._losses) < command["until"]:
                self._step(len(self._losses))
                _tell(step=len(self._losses), reconnects=self._talk.conversation.num_reconnects)

    def _step(self, step: int) -> None:
        batch = self._batches[step % _NUM_BATCHES]
        lower, upper, logits = self._student(batch.ids, batch.mask)
        self._point("before", step)
        heard = self._talk(lower, mask=batch.mask, inputs=batch.inputs)
        _tell(answered_s=time.monotonic())
        self._point("between", step)
        loss = functional.cross_entropy(logits, batch.labels)
        loss = loss + losses.interaction(upper, heard.decoded, batch.mask)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        _tell(answered_s=time.monotonic())
        self._optimizer.step()
        self._point("update", step)
        self._talk.push_codec()
        self._losses.append(loss.item())
        self._save()

    def _point(self, point: str, step: int) -> None:
        """Waits here if that was asked for, and says which replica it talks to."""
        if self._held == {"point": point, "step": step}:
            self._held = None
            conversation = self._talk.conversation._conversation  # noqa: SLF001 - nobody else needs to know
            stream = None if conversation is None else conversation._stream  # noqa: SLF001
            _tell(held=point, target="" if stream is None else stream.target)
            self._commands.next()

    def _save(self) -> None:
        state = {
            "weights": self._all.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "losses": self._losses,
        }
        aside = self._folder / "checkpoint.part"
        torch.save(state, aside)
        aside.replace(self._folder / "checkpoint.pt")


def _connect(config: WorkerConfig) -> TeacherTalk:
    """Asks a teacher what it is, again and again while none answers."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return TeacherTalk.connect(
                config.address,
                student_dim=_WIDTH,
                message_dim=_MESSAGE_DIM,
                message_len=_MESSAGE_LEN,
                hidden_dim=_CODEC_WIDTH,
                reading="beside",
                deterministic=True,
                options=config.options(),
            )
        except TeacherUnavailableError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.2)


def _tell(**facts: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(facts), flush=True)


def _main() -> None:
    torch.set_num_threads(1)
    config = WorkerConfig(**json.loads(Path(sys.argv[1]).read_text()))
    try:
        _Student(config).run()
    except TeacherError as error:
        _tell(error=f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    _main()
