"""A small student and a teacher for it, both without positions, for tests of training."""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from services.teacher.config import ServiceConfig
from tests.toy import NUM_IDS

__all__ = [
    "BrokenStudent",
    "CrashingStudent",
    "FullDiskStudent",
    "HangingStudent",
    "RowTeacher",
    "SlowDiskStudent",
    "SlowStudent",
    "StrickenStudent",
    "ToyStudent",
    "row_config",
]


class RowTeacher(nn.Module):
    """Ids [B] to states [B, 8] and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = RowEmbed()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3))
        self.head = nn.Linear(8, 2)


class RowEmbed(nn.Module):
    """Ids [B] to states [B, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(NUM_IDS, 8)

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.table(ids)
        return states


def row_config(folder: Path, **service: Any) -> ServiceConfig:
    """Saves the state of a `RowTeacher` and returns the config that serves it."""
    weights = folder / "rows.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(RowTeacher().state_dict(), weights)
    model = {
        "family": "module",
        "factory": "tests.toy_student:RowTeacher",
        "weights": weights,
        "inputs": {"ids": f"int64[*]<{NUM_IDS}"},
    }
    auth = "tokens" if "tenants" in service else "none"
    return ServiceConfig.model_validate({"name": "rows", "auth": auth, "model": model, **service})


class ToyStudent(nn.Module):
    """Ids [B] to logits [B, num_classes]; its states are [B, 6]."""

    def __init__(self, num_classes: int, width: int = 6, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_IDS, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.embed(ids)
        for block in self.blocks:
            states = block(states)
        logits: Tensor = self.head(self.dropout(states))
        return logits


class StrickenStudent(ToyStudent):
    """Something befalls its process, once, at its n-th training step."""

    def __init__(self, num_classes: int, marker: str, at_step: int, dropout: float = 0.1) -> None:
        super().__init__(num_classes, dropout=dropout)
        self._marker = Path(marker)
        self._at_step = at_step
        self._steps = 0

    def forward(self, ids: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.is_meant():
            self._steps += 1
            if self._steps == self._at_step and not self._marker.exists():
                self._marker.touch()
                self.strike()
        return super().forward(ids)

    def is_meant(self) -> bool:
        """Whether it is this worker's process."""
        return True

    def strike(self) -> None:
        """What befalls it."""
        raise NotImplementedError


class CrashingStudent(StrickenStudent):
    """Ends its process, as a lost machine would."""

    def strike(self) -> None:
        os._exit(1)


class HangingStudent(StrickenStudent):
    """Hangs the second worker, as a broken network would."""

    def is_meant(self) -> bool:
        return dist.is_initialized() and dist.get_rank() == 1

    def strike(self) -> None:
        threading.Event().wait()


class FullDiskStudent(StrickenStudent):
    """Leaves its process no room for files over 8 KiB."""

    def strike(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))


class SlowDiskStudent(StrickenStudent):
    """Has its process wait for the disk for ever."""

    def strike(self) -> None:
        os.fsync = self._wait

    @staticmethod
    def _wait(fd: object) -> None:
        threading.Event().wait()


class BrokenStudent(ToyStudent):
    """Fails in training, not when it is looked at."""

    def forward(self, ids: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("a defect of the student")
        return super().forward(ids)


class SlowStudent(ToyStudent):
    """Takes its time for each training step."""

    def __init__(self, num_classes: int, step_s: float) -> None:
        super().__init__(num_classes)
        self._step_s = step_s

    def forward(self, ids: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            time.sleep(self._step_s)
        return super().forward(ids)
