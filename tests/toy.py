"""A tiny torch module with attention, served as a teacher in the tests of the core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from services.teacher.config import ServiceConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.teacher.families.base import Teacher

__all__ = [
    "HIDDEN",
    "NUM_BLOCKS",
    "NUM_IDS",
    "OUTPUTS",
    "STUDENT_DIM",
    "ToyTeacher",
    "WatchedTeacher",
    "toy_config",
]

HIDDEN = 8
NUM_BLOCKS = 3
NUM_IDS = 32
OUTPUTS = 5
STUDENT_DIM = 6


class Embed(nn.Module):
    """Ids to states, with a share of each position's number, so that order matters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(NUM_IDS, width)

    def forward(self, ids: Tensor) -> Tensor:
        position = torch.arange(ids.shape[1], device=ids.device, dtype=self.table.weight.dtype)
        states: Tensor = self.table(ids) + torch.sin(position)[:, None]
        return states


class Block(nn.Module):
    """Attention and an MLP, in plain operations: the same ones with and without gradients."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU())
        self.out = nn.Linear(2 * width, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed = self.norm(hidden_states)
        scores = self.query(normed) @ self.key(normed).transpose(1, 2)
        hidden_states = hidden_states + scores.softmax(-1) @ self.value(normed)
        states: Tensor = hidden_states + self.out(self.feed(hidden_states))
        return states


class ToyTeacher(nn.Module):
    """Three blocks between an embedding of ids and a linear head."""

    def __init__(self, width: int = HIDDEN) -> None:
        super().__init__()
        self.embed = Embed(width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(NUM_BLOCKS)])
        self.head = nn.Linear(width, OUTPUTS)


def toy_config(folder: Path, *, seed: int = 0, head: str | None = "head", **service: Any) -> ServiceConfig:
    """Saves the state of a toy drawn with `seed` and returns the config that serves it."""
    weights = folder / f"toy-{seed}.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_file(ToyTeacher().state_dict(), weights)
    model = {
        "family": "module",
        "factory": "tests.toy:ToyTeacher",
        "weights": weights,
        "head": head,
        "inputs": {"ids": f"int64[*,*]<{NUM_IDS}"},
    }
    return ServiceConfig.model_validate({"name": f"toy-{seed}", "auth": "none", "model": model, **service})


class WatchedTeacher:
    """A teacher that calls `watch` with the name of what is about to be used; it may wait or raise."""

    def __init__(self, teacher: Teacher) -> None:
        self.watch: Callable[[str], None] = lambda _: None
        self._teacher = teacher

    def __getattr__(self, name: str) -> Any:
        self.watch(name)
        return getattr(self._teacher, name)
