"""The small interface behind which every kind of teacher stands.

A teacher is a stack of blocks between an embedding and a head. Split at layer s it has a *lower* part (the
embedding and the first s blocks) and an *upper* part (the other blocks and the final norm, if there is one).
Teachers are frozen: none of their parameters requires a gradient, but gradients flow through them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "InputField",
    "InputsError",
    "Modality",
    "States",
    "Teacher",
    "TeacherFacts",
    "UnsupportedError",
    "fingerprint",
    "freeze",
]


class InputsError(ValueError):
    """A student's inputs are not what the teacher reads; names the field, what came, what was expected."""


class UnsupportedError(ValueError):
    """The teacher can't do what was asked, for example give logits without a head."""


class Modality(StrEnum):
    """What a teacher reads."""

    TEXT = "text"
    TENSORS = "tensors"


@dataclass(frozen=True)
class States:
    """Hidden states of a batch.

    Attributes:
        hidden_states: [B, L, D], in the teacher's dtype.
        mask: [B, L], bool, true where a position is valid.
    """

    hidden_states: Tensor
    mask: Tensor


@dataclass(frozen=True)
class InputField:
    """One named tensor among a teacher's inputs.

    Attributes:
        name: for example "input_ids".
        dtype: its element type.
        shape: -1 for an axis of any size; the first axis is the batch.
        required: False if it may be left out.
        maximum: for ids, one more than the largest allowed value (they index an embedding); None: no check.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    required: bool = True
    maximum: int | None = None


@dataclass(frozen=True)
class TeacherFacts:
    """What a teacher is; see `TeacherDescription` of the protocol for the meaning of the fields."""

    name: str
    family: str
    num_layers: int
    hidden_size: int
    modality: Modality
    dtype: torch.dtype
    num_parameters: int
    fingerprint: str
    has_head: bool
    max_len: int
    # Whether positions that are not valid change nothing at those that are, so that rows can be padded.
    masks_padding: bool = True
    inputs: tuple[InputField, ...] = field(default=())


@runtime_checkable
class Teacher(Protocol):
    """A frozen model that can be cut in two.

    `s` is a split layer, 0 <= s <= num_layers: the number of blocks that belong to the lower part.
    """

    @property
    def facts(self) -> TeacherFacts:
        """What the teacher is."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """Yields the frozen parameters."""
        ...

    def prepare(self, texts: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Checks a student's inputs and turns them into the tensors `lower` reads, on the CPU.

        Args:
            texts: one a row, or empty.
            tensors: by name, the batch first, or empty; exactly one of the two is given.

        Raises:
            InputsError: they are not what the teacher reads.
        """
        ...

    def lower(self, inputs: Mapping[str, Tensor], s: int) -> States:
        """Runs the lower part on prepared inputs (on the teacher's device)."""
        ...

    def upper(self, states: States, s: int) -> States:
        """Runs the upper part; keeps the shapes of its argument."""
        ...

    def compile(self, backend: str) -> None:
        """Has the blocks compiled when they are first used, once for each shape."""
        ...

    def pool(self, states: States) -> Tensor:
        """Returns one vector a row, [B, D], of the upper part's result."""
        ...

    def head(self, states: States) -> Tensor:
        """Returns the teacher's output, [B, outputs], from the upper part's result.

        Raises:
            UnsupportedError: the teacher has no head.
        """
        ...


def freeze(module: nn.Module) -> nn.Module:
    """Puts a module in evaluation mode and stops its parameters from requiring gradients."""
    return module.eval().requires_grad_(requires_grad=False)


def fingerprint(module: nn.Module) -> str:
    """Returns SHA-256 over the names, types, shapes and values of a module's state, in hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
