"""Blocks that mix positions and take the mask, as a teacher of the `module` family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from services.teacher.config import ServiceConfig
from services.teacher.families import load_teacher
from services.teacher.families.base import States

if TYPE_CHECKING:
    from pathlib import Path


class MaskedMean(nn.Module):
    """Adds the mean over valid positions to each position."""

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        weights = mask[..., None].to(hidden_states.dtype)
        mean = (hidden_states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        return hidden_states + mean


class MaskedSequences(nn.Module):
    """A module of sequences whose block takes the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Tokens()
        self.blocks = nn.ModuleList([MaskedMean()])


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.table(ids)
        return states


def test_blocks_that_take_a_mask_do_not_see_a_messages_padding(tmp_path: Path) -> None:
    save_file(MaskedSequences().state_dict(), tmp_path / "w.safetensors")
    model = {
        "family": "module",
        "factory": f"{__name__}:MaskedSequences",
        "weights": tmp_path / "w.safetensors",
        "head": None,
        "inputs": {"ids": "int64[*,*]<8"},
    }
    config = ServiceConfig.model_validate({"auth": "none", "model": model})
    teacher = load_teacher(config, torch.device("cpu"), torch.float32)
    states = torch.randn(1, 3, 4)
    short = teacher.upper(States(states[:, :2], torch.ones(1, 2, dtype=torch.bool)), 0)
    padded = teacher.upper(States(states, torch.tensor([[True, True, False]])), 0)
    torch.testing.assert_close(padded.hidden_states[:, :2], short.hidden_states)
