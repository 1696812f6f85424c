"""TalkingTrainer under torchrun: each process has its own conversation, and all learn what one learns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tests.test_trainer import TEXTS, fresh_model
from tests.tiny_bert import folder, teacher

if TYPE_CHECKING:
    from tests.toy_server import ToyServer

__all__ = ["folder", "teacher"]

ROOT = Path(__file__).resolve().parents[1]


def test_two_processes_learn_what_one_learns(folder: Path, teacher: ToyServer, tmp_path: Path) -> None:
    learnt = []
    for num_processes in (1, 2):
        out = tmp_path / str(num_processes)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        arguments = [str(folder), teacher.address, str(out), str(len(TEXTS) // num_processes)]
        command = [sys.executable, *launcher, "-m", "tests.trainer_process", *arguments]
        subprocess.run(command, check=True, cwd=ROOT, timeout=240)
        learnt.append(torch.load(out / "learnt.pt", weights_only=True))
    one, two = learnt
    assert any(name.startswith("talking.") for name in one)
    for name, expected in one.items():
        # A key's bias has no gradient but for rounding.
        torch.testing.assert_close(two[name], expected, rtol=1e-4, atol=1e-12, msg=name)
    untrained = fresh_model().state_dict()
    assert any(not torch.equal(one[name], untrained[name]) for name in untrained)
