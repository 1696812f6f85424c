"""The digits' teacher, a transformer over patches of an image, and their student, a small residual network.

Both have `embed`, `blocks` and `head`. They read `pixel_values` as a run makes them of image files, three
equal channels of a grey image, and use the first. This module knows no data set and no training.

Shapes: B batch, L patches, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.movielens.models import Block

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DigitStudent", "DigitTeacher"]

_NUM_CHANNELS = 32  # of what is seen before it is cut into patches
_POSITION_STD = 0.5  # as large as what is seen there: a mean over positions is all that tells them apart


class PatchEmbedding(nn.Module):
    """An image as a sequence of its patches, each with a constant of its place."""

    def __init__(self, size: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(1, _NUM_CHANNELS, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(_NUM_CHANNELS, _NUM_CHANNELS, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(_NUM_CHANNELS, hidden_size, patch_size, stride=patch_size),
        )
        self.position = nn.Parameter(torch.randn((size // patch_size) ** 2, hidden_size) * _POSITION_STD)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embeds images [B, 3, size, size], float32, 0 to 1, as [B, L, D]."""
        patches: Tensor = self.patches(pixel_values[:, :1])  # [B, D, rows, columns]
        return patches.flatten(2).transpose(1, 2) + self.position


class AttentionBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.project_in = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.project_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.mlp = Block(hidden_size, 4 * hidden_size, dropout)

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps [B, L, D] to [B, L, D]; positions where `mask`, [B, L], bool, is false are not attended to."""
        projected = self.project_in(self.attention_norm(hidden_states))
        # [B, L, 3*D] -> queries, keys and values, each [B, heads, L, D/heads]
        heads = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads.unbind()
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=None if mask is None else mask[:, None, None]
        )
        change = self.project_out(attended.transpose(1, 2).flatten(2))
        states: Tensor = self.mlp(hidden_states + self.dropout(change))
        return states


class DigitTeacher(nn.Module):
    """Tells the digit of an image by attention over its patches.

    Args:
        size: height and width of the images.
        patch_size: of the square patches.
        hidden_size: width of the hidden states.
        num_layers: blocks.
        num_heads: attention heads.
        dropout: in the blocks, in training.
        num_classes: outputs.
    """

    def __init__(
        self,
        *,
        size: int = 8,
        patch_size: int = 4,
        hidden_size: int = 96,
        num_layers: int = 4,
        num_heads: int = 4,
        dropout: float = 0.0,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.embed = PatchEmbedding(size, patch_size, hidden_size)
        self.blocks = nn.ModuleList(
            AttentionBlock(hidden_size, num_heads, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns logits, [B, num_classes], of images [B, 3, size, size], float32, 0 to 1."""
        logits: Tensor = self.head(self.pooled(pixel_values))
        return logits

    def pooled(self, pixel_values: Tensor) -> Tensor:
        """Returns the mean over positions of the normed upper states, [B, D], which a probe reads."""
        states: Tensor = self.norm(_run(self.embed(pixel_values), self.blocks))
        return states.mean(1)


class PixelEmbedding(nn.Module):
    """An image as one vector."""

    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__()
        self.affine = nn.Linear(size * size, hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embeds images [B, 3, size, size], float32, 0 to 1, as [B, D]."""
        hidden_states: Tensor = self.affine(pixel_values[:, 0].flatten(1) - 0.5)
        return hidden_states


class DigitStudent(nn.Module):
    """Tells the digit of an image by a residual network over all pixels; it runs alone after training.

    Args:
        num_classes: outputs.
        size: height and width of the images.
        hidden_size: width of the hidden states.
        num_layers: residual blocks; the lower states are those of `blocks.0`, the upper those of the last.
        dropout: in the blocks, in training.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        size: int = 8,
        hidden_size: int = 32,
        num_layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = PixelEmbedding(size, hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size, hidden_size, dropout) for _ in range(num_layers))
        self.head = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, num_classes))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns logits, [B, num_classes], of images [B, 3, size, size], float32, 0 to 1."""
        logits: Tensor = self.head(_run(self.embed(pixel_values), self.blocks))
        return logits


def _run(hidden_states: Tensor, blocks: Iterable[nn.Module]) -> Tensor:
    for block in blocks:
        hidden_states = block(hidden_states)
    return hidden_states
