"""A team that trains in a process of its own until its input ends, with a new conversation now and then.

python -m tests.toy_team ADDRESS TOKEN_FILE ROWS PAUSE_S
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import torch

from student_client import ClientOptions, TeacherTalk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["STUDENT_DIM", "team"]

STUDENT_DIM = 16
MESSAGE_DIM, MESSAGE_LEN = 8, 4

_LENGTH = 12
_NUM_IDS = 64
_NUM_BATCHES = 50
_STEPS_OF_A_TALK = 400


@contextlib.contextmanager
def team(address: str, token_file: Path, num_rows: int, pause_s: float) -> Iterator[None]:
    """Has a team train while open."""
    command = [sys.executable, "-m", "tests.toy_team", address, str(token_file), str(num_rows), str(pause_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield
        finally:
            process.communicate()
    assert process.returncode == 0


def _train(address: str, options: ClientOptions, num_rows: int, pause_s: float, end: threading.Event) -> None:
    talk = TeacherTalk.connect(
        f"preceptor://{address}",
        student_dim=STUDENT_DIM,
        message_dim=MESSAGE_DIM,
        message_len=MESSAGE_LEN,
        reading="beside",
        options=options,
    )
    student = torch.nn.Linear(STUDENT_DIM, STUDENT_DIM)
    optimizer = torch.optim.AdamW([*student.parameters(), *talk.parameters()], lr=1e-3)
    states_of = torch.nn.Embedding(_NUM_IDS, STUDENT_DIM)
    batches = [torch.randint(1, _NUM_IDS, (num_rows, _LENGTH)) for _ in range(_NUM_BATCHES)]
    for step in range(_STEPS_OF_A_TALK):
        ids = batches[step % _NUM_BATCHES]
        states = student(states_of(ids))
        loss = (talk(states, inputs={"ids": ids}).decoded - states).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        time.sleep(pause_s)
        if end.is_set():
            break
    talk.close()


def _main() -> None:
    torch.set_num_threads(1)
    address, token_file, num_rows, pause_s = sys.argv[1:]
    end = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        end.set()

    threading.Thread(target=wait, daemon=True).start()
    while not end.is_set():
        _train(address, ClientOptions(token_file=token_file), int(num_rows), float(pause_s), end)


if __name__ == "__main__":
    _main()
