"""Draws images anew in many domains, of which the students' are none: what a foundation of digits is made of.

Held out are turns within 25 degrees of the students' 90, and images that are dark for light as a whole: parts
of an image are inverted, never all of it. All draws are of torch's global generator.

Shapes: B batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from examples.study.digits import SIZE

__all__ = ["HELD_OUT_RADIANS", "draw_angles", "in_some_domain", "partly_inverted"]

HELD_OUT_RADIANS = (math.radians(65), math.radians(115))  # anticlockwise; the students' turn is in the middle

_EXACT_RATE = 0.4  # of images that interpolation doesn't blur
_EXACT_QUARTERS = torch.tensor([0, 0, 0, 2, 3])  # more upright ones: a 6 is else a 9
_MAX_SHIFT = 0.15  # of half an image
_SCALES = (0.9, 1.1)
_INVERTED_RATE = 0.5
_MAX_OFFSET = 0.7  # of the border of the inverted part from the middle, of half an image
_MIN_CONTRAST = 0.6
_MAX_NOISE_STD = 0.1


def in_some_domain(pixels: Tensor) -> Tensor:
    """Returns upright images [B, 8, 8], 0 to 1, each as a domain at random has it; noise may leave 0 to 1."""
    changed = partly_inverted(_moved(pixels))
    contrast = _uniform(len(pixels), _MIN_CONTRAST, 1)[:, None, None]
    darkest = (1 - contrast) * torch.rand(len(pixels))[:, None, None]
    noise_std = _uniform(len(pixels), 0, _MAX_NOISE_STD)[:, None, None]
    return darkest + contrast * changed + noise_std * torch.randn_like(changed)


def draw_angles(number: int) -> Tensor:
    """Draws turns from the whole circle but what is held out, in radians, anticlockwise, float32."""
    first, last = HELD_OUT_RADIANS
    return _uniform(number, last, first + 2 * math.pi)


def partly_inverted(pixels: Tensor) -> Tensor:
    """Returns half of some images [B, 8, 8] as they are, and others dark for light on one side of a line."""
    direction = _uniform(len(pixels), 0, 2 * math.pi)[:, None, None]
    offset = _uniform(len(pixels), -_MAX_OFFSET, _MAX_OFFSET)[:, None, None]
    across = torch.linspace(-1, 1, SIZE)
    is_beyond = direction.cos() * across + direction.sin() * across[:, None] > offset  # [B, 8, 8]
    is_chosen = torch.rand(len(pixels))[:, None, None] < _INVERTED_RATE
    return torch.where(is_chosen & is_beyond, 1 - pixels, pixels)


def _moved(pixels: Tensor) -> Tensor:
    """Turns, scales and shifts images; some by quarter turns and whole pixels only, all of them sharp."""
    number = len(pixels)
    is_exact = torch.rand(number) < _EXACT_RATE
    quarters = _EXACT_QUARTERS[torch.randint(len(_EXACT_QUARTERS), (number,))]
    whole = (torch.randint(3, (number, 2)) - 1) * (2 / SIZE)
    angle = torch.where(is_exact, quarters * (math.pi / 2), draw_angles(number))
    scale = torch.where(is_exact, torch.ones(number), _uniform(number, *_SCALES))
    any_shift = _uniform(number * 2, -_MAX_SHIFT, _MAX_SHIFT).view(number, 2)
    shift = torch.where(is_exact[:, None], whole, any_shift)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    rows = [torch.stack([cosine, -sine, shift[:, 0]], -1), torch.stack([sine, cosine, shift[:, 1]], -1)]
    grid = functional.affine_grid(torch.stack(rows, 1), [number, 1, SIZE, SIZE], align_corners=False)
    moved = functional.grid_sample(pixels[:, None], grid, mode="bicubic", align_corners=False)
    return moved[:, 0].clamp(0, 1)


def _uniform(number: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(number)
