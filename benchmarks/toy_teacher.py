"""Two toy modules for the `module` family: one with attention, one that does nothing.

The service builds them by their factories, as it would an operator's own model; this module knows neither the
service nor the student.

Shapes: B batch, L positions, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Attention", "Identity", "TransformerBlock", "save_weights"]


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer map, each after a norm and beside a shortcut; keeps [B, L, D].

    Queries and keys have no bias. A key's bias can't change the softmax, so its gradient would be rounding
    noise, which AdamW would scale up to full steps.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps [B, L, D] to [B, L, D]; `mask` is [B, L], bool, the positions that are attended to."""
        batch, length, width = hidden_states.shape
        projected = self.query_key_value(self.attention_norm(hidden_states))
        # [B, L, 3*D] -> three of [B, heads, L, D / heads]
        query, key, value = projected.view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        keys = None if mask is None else mask[:, None, None, :].expand(batch, 1, length, length)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        hidden_states = hidden_states + self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        result: Tensor = hidden_states + self.mlp(hidden_states)
        return result


class _Embedding(nn.Module):
    def __init__(self, vocab_size: int, width: int, max_len: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.randn(max_len, width) * 0.1)

    def forward(self, ids: Tensor) -> Tensor:
        """Maps [B, L] int64 to [B, L, D]."""
        words: Tensor = self.words(ids)
        return words + self.positions[: ids.shape[1]]


class Attention(nn.Module):
    """A small transformer of ids, with a norm and a head."""

    def __init__(self, vocab_size: int, width: int, num_blocks: int, num_heads: int, max_len: int) -> None:
        super().__init__()
        self.embed = _Embedding(vocab_size, width, max_len)
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)


class _Rows(nn.Module):
    """Takes its input as hidden states; its one number keeps the module from having no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, D] to [B, D]."""
        return x * self.scale


class Identity(nn.Module):
    """A teacher of two blocks that do nothing; its width is that of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = _Rows()
        self.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])


def save_weights(module: nn.Module, path: Path) -> None:
    """Writes a module's state to a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
