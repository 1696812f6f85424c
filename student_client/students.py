"""Builds students: any module by import path, and a small transformer for texts.

The built-in student starts from nothing: hashed words, learned positions, pre-norm blocks, a mean over valid
positions and a linear head.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from student_client.config import StudentConfig

__all__ = ["TextStudent", "build_student"]


def build_student(config: StudentConfig, *, num_classes: int, python_path: Sequence[Path] = ()) -> nn.Module:
    """Builds a student from its config.

    Args:
        config: names the factory.
        num_classes: of the data; passed on if the config names an argument for it.
        python_path: folders to import the factory from, before all others.

    Raises:
        ValueError: the factory can't be imported, or gives no module.
    """
    for folder in reversed([str(folder) for folder in python_path]):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    module_name, _, name = config.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"student.factory: got {config.factory!r}, expected package.module:callable ({error})"
        ) from None
    kwargs: dict[str, Any] = dict(config.kwargs)
    if config.num_classes_kwarg:
        kwargs.setdefault(config.num_classes_kwarg, num_classes)
    try:
        student = factory(**kwargs)
    except TypeError as error:
        raise ValueError(f"student.kwargs: got {sorted(kwargs)} for {config.factory}: {error}") from None
    if not isinstance(student, nn.Module):
        raise ValueError(  # noqa: TRY004 - a wrong config, not a wrong call
            f"student.factory: {config.factory} gave a {type(student).__name__}, expected a torch module"
        )
    return student


class TextStudent(nn.Module):
    """A small transformer encoder over hashed words, with a classifier.

    Args:
        num_classes: outputs.
        vocab_size: buckets of words.
        dim: width.
        num_layers: blocks, at `blocks.0`, `blocks.1`, ...
        num_heads: attention heads.
        max_len: the largest number of positions.
        dropout: in the blocks.
    """

    def __init__(
        self,
        num_classes: int,
        vocab_size: int = 8192,
        dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        max_len: int = 32,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim, padding_idx=0)
        self.position = nn.Parameter(torch.randn(max_len, dim) * 0.02)
        self.blocks = nn.ModuleList(_Block(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns logits, [B, num_classes], of ids [B, L] and their mask [B, L], bool."""
        states = self.embed(input_ids) + self.position[: input_ids.shape[1]]
        for block in self.blocks:
            states = block(states, attention_mask)
        valid = attention_mask[..., None]
        pooled = (self.norm(states) * valid).sum(1) / valid.sum(1).clamp_min(1)
        logits: Tensor = self.head(pooled)
        return logits


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim)
        )

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Maps [B, L, D] to [B, L, D]; positions where `mask` is false are not attended to."""
        normed = self.attention_norm(states)
        attended, _ = self.attention(normed, normed, normed, key_padding_mask=~mask, need_weights=False)
        states = states + attended
        update: Tensor = self.mlp(self.mlp_norm(states))
        return states + update
