"""scikit-learn's handwritten digits, shared out between a teacher and students of another domain.

1,797 images of 8 x 8 pixels (Alpaydin & Kaynak 1998, UCI). No image is the teacher's and a student's, in any
domain: what a student learns of its test images, the teacher has not seen upright either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from student_client.whole_files import whole_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["DigitSplit", "Digits", "Domain", "in_domain", "load_digits", "write_images"]

Domain = Literal["upright", "rotated", "inverted"]

NUM_CLASSES = 10
SIZE = 8  # height and width
_MAX_VALUE = 16  # of the data set's pixels
_NUM_TEACHER, _NUM_TEST = 700, 397


@dataclass(frozen=True)
class Digits:
    """Some digits.

    Attributes:
        number: [N], int64, of the image in the data set.
        pixels: [N, 8, 8], float32, 0 to 1, upright.
        label: [N], int64, 0 to 9.
    """

    number: Tensor
    pixels: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def select(self, rows: Tensor) -> Digits:
        """Returns the rows of an index [n], int64."""
        return Digits(self.number[rows], self.pixels[rows], self.label[rows])


@dataclass(frozen=True)
class DigitSplit:
    """The teacher's images, and the students', to learn and to be tested on."""

    teacher: Digits
    train: Digits
    test: Digits


def load_digits() -> DigitSplit:
    """Loads the digits and splits them, always alike: 700 for the teacher, 700 and 397 for students.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError("digits: scikit-learn is not installed; pip install 'preceptor[study]'") from error
    found = load()
    digits = Digits(
        torch.arange(len(found.target)),
        torch.from_numpy(found.images).float() / _MAX_VALUE,
        torch.from_numpy(found.target).long(),
    )
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    ends = [_NUM_TEACHER, len(digits) - _NUM_TEST]
    return DigitSplit(*(digits.select(rows) for rows in order.tensor_split(ends)))


def in_domain(pixels: Tensor, domain: Domain) -> Tensor:
    """Returns images [N, 8, 8] as a domain has them: as they are, turned by 90 degrees, or dark for light.

    Raises:
        ValueError: there is no such domain.
    """
    if domain == "upright":
        return pixels
    if domain == "rotated":
        return torch.rot90(pixels, dims=(-2, -1))
    if domain == "inverted":
        return 1 - pixels
    raise ValueError(f"domain: got {domain!r}, expected 'upright', 'rotated' or 'inverted'")


def write_images(folder: Path, digits: Digits, domain: Domain) -> list[str]:
    """Writes digits as grey PNG files in a domain, once, and returns their paths.

    Args:
        folder: where they are kept; no other process may be writing there.
        digits: upright.
        domain: how they are written.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder.resolve() / f"{domain}-{number:04d}.png" for number in digits.number.tolist()]
    values = (in_domain(digits.pixels, domain) * 255).round().to(torch.uint8)
    for path, image in zip(paths, values, strict=True):
        if not path.is_file():
            with whole_file(path) as aside:
                Image.frombytes("L", (SIZE, SIZE), bytes(image.flatten().tolist())).save(aside, format="PNG")
    return [str(path) for path in paths]
