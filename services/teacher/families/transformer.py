"""What the transformers families share: tokens in, a stack of blocks cut in two.

An encoder and a decoder differ in their attention mask, in how they pool and in their head; the subclasses
say so. How a model's parts are found, and its file formats, are the subclasses' business too.

Shapes: B batch, L positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from services.teacher.families.base import (
    InputField,
    InputsError,
    Modality,
    States,
    TeacherFacts,
    UnsupportedError,
    fingerprint,
    freeze,
)
from services.teacher.families.input_fields import check_one_kind, check_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["Parts", "TransformerTeacher", "check_complete", "check_parity", "masked_mean", "tokenizer_limit"]

_PROBE_LEN = 8
_PROBE_TOLERANCE = 0.01

_MAX_CHARACTERS_A_TOKEN = 16


@dataclass(frozen=True)
class Parts:
    """The parts of a model that a teacher uses.

    Attributes:
        embed: [B, L] int64 to [B, L, D].
        blocks: each keeps [B, L, D].
        norm: the final norm, which belongs to the upper part; None: there is none.
        head: the output layer; None: there is none.
        hidden_size: D.
        vocab_size: V, one more than the largest token id.
    """

    embed: nn.Module
    blocks: nn.ModuleList
    norm: nn.Module | None
    head: nn.Module | None
    hidden_size: int
    vocab_size: int

    def as_module(self) -> nn.ModuleDict:
        """Returns the parts as one module; a parameter that two of them share is the same in it."""
        parts = {"embed": self.embed, "blocks": self.blocks, "norm": self.norm, "head": self.head}
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})


class TransformerTeacher(ABC):
    """A frozen transformers model; see `base.Teacher` for the methods.

    Args:
        parts: the model's parts, on `device` and in `dtype`.
        tokenizer: a fast tokenizer of transformers.
        name: the teacher's name for its students.
        max_len: the largest number of positions of an input; longer texts are cut.
        device: where the parts are.
        dtype: what they compute in.

    Raises:
        ValueError: `max_len` leaves no room for a token.
    """

    family: str

    def __init__(
        self,
        parts: Parts,
        tokenizer: Any,
        *,
        name: str,
        max_len: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        num_special_tokens = tokenizer.num_special_tokens_to_add()
        if max_len <= num_special_tokens:
            raise ValueError(f"limits.max_input_len: got {max_len}, expected more than {num_special_tokens}")
        module = freeze(parts.as_module())
        self._parts = parts
        self._blocks = tuple(parts.blocks)
        self._tokenizer = tokenizer
        self._device = device
        self._facts = TeacherFacts(
            name=name,
            family=self.family,
            num_layers=len(parts.blocks),
            hidden_size=parts.hidden_size,
            modality=Modality.TEXT,
            dtype=dtype,
            num_parameters=sum(parameter.numel() for parameter in module.parameters()),
            fingerprint=fingerprint(module),
            has_head=parts.head is not None,
            max_len=max_len,
            inputs=(
                InputField("input_ids", torch.int64, (-1, -1), maximum=parts.vocab_size),
                InputField("attention_mask", torch.int64, (-1, -1), required=False, maximum=2),
            ),
        )
        # The first call sets the tokenizer's truncation; later ones find it set, so threads may share it.
        self._tokenize(["probe"])

    @property
    def facts(self) -> TeacherFacts:
        """What the teacher is."""
        return self._facts

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    def parameters(self) -> Iterator[Tensor]:
        """Yields the frozen parameters."""
        return self._parts.as_module().parameters()

    def prepare(self, texts: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokenizes texts, or checks `input_ids` [B, L] and `attention_mask` [B, L], bool or int64.

        Returns:
            `input_ids` [B, L] int64 and `attention_mask` [B, L] bool, on the CPU.

        Raises:
            InputsError: they are not what the teacher reads.
        """
        check_one_kind(texts, tensors, accepts_texts=True)
        if texts:
            return self._tokenize(texts)
        mask = tensors.get("attention_mask")
        if mask is not None and mask.dtype is torch.bool:
            tensors = {**tensors, "attention_mask": mask.long()}
        checked = check_tensors(self._facts.inputs, tensors, max_len=self._facts.max_len)
        ids = checked["input_ids"]
        mask = checked.get("attention_mask", torch.ones_like(ids))
        if mask.shape != ids.shape:
            raise InputsError(
                f"inputs[attention_mask]: got shape {list(mask.shape)}, expected {list(ids.shape)} "
                "as in 'input_ids'"
            )
        return {"input_ids": ids, "attention_mask": mask != 0}

    def _tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Turns texts into ids padded on the right, none of them without a token."""
        # Tokenizers read a text to its end before they cut it; no token is this long on average.
        cut = [text[: self._facts.max_len * _MAX_CHARACTERS_A_TOKEN] for text in texts]
        rows: list[list[int]] = self._tokenizer(
            cut, truncation=True, max_length=self._facts.max_len, return_attention_mask=False
        )["input_ids"]
        rows = [row or [self._first_token_id()] for row in rows]
        length = max(len(row) for row in rows)
        padding = self._tokenizer.pad_token_id or 0
        return {
            "input_ids": torch.tensor([row + [padding] * (length - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[n < len(row) for n in range(length)] for row in rows]),
        }

    def _first_token_id(self) -> int:
        """Returns what stands for an empty text where the tokenizer itself adds nothing."""
        for token_id in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token_id is not None:
                return int(token_id)
        return 0

    def lower(self, inputs: Mapping[str, Tensor], s: int) -> States:
        """Runs the embedding and the first `s` blocks on `input_ids` and `attention_mask`."""
        states = States(self._parts.embed(inputs["input_ids"]), inputs["attention_mask"])
        return States(self._run(self._blocks[:s], states), states.mask)

    def upper(self, states: States, s: int) -> States:
        """Runs the blocks from `s` on and the final norm; keeps the shapes of its argument."""
        hidden_states = self._run(self._blocks[s:], states)
        if self._parts.norm is not None:
            hidden_states = self._parts.norm(hidden_states)
        return States(hidden_states, states.mask)

    def compile(self, backend: str) -> None:
        """Has the blocks compiled when they are first used, once for each shape."""
        for block in self._blocks:
            block.compile(dynamic=False, backend=backend)

    def pool(self, states: States) -> Tensor:
        """Returns one vector a row, [B, D]; zeros for a row without a valid position."""
        return self._pool(states)

    def head(self, states: States) -> Tensor:
        """Returns the model's output, [B, outputs].

        Raises:
            UnsupportedError: the model has no head.
        """
        if self._parts.head is None:
            raise UnsupportedError("logits: got a teacher without a head, expected one with a head")
        return self._head(self._parts.head, states)

    @abstractmethod
    def _run(self, blocks: Sequence[nn.Module], states: States) -> Tensor:
        """Runs blocks with the model's attention mask, [B, L, D] -> [B, L, D]."""

    @abstractmethod
    def _pool(self, states: States) -> Tensor:
        """Returns one vector a row, [B, D]."""

    @abstractmethod
    def _head(self, head: nn.Module, states: States) -> Tensor:
        """Returns the head's output, [B, outputs]."""

    def probe_inputs(self) -> dict[str, Tensor]:
        """Returns two short rows, the second padded on the right, on the teacher's device."""
        length = min(_PROBE_LEN, self._facts.max_len)
        ids = torch.arange(2 * length).reshape(2, length) % self._parts.vocab_size
        mask = torch.ones(2, length, dtype=torch.bool)
        mask[1, (length + 1) // 2 :] = False
        return {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}


def check_parity(got: Tensor, expected: Tensor, *, what: str) -> None:
    """Checks that the parts, run by hand, give what the whole model gives.

    A model may look like its family and yet add something between its blocks (a bias by position, a scale).

    Raises:
        ValueError: they differ.
    """
    error = float((got.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12))
    if not error <= _PROBE_TOLERANCE:
        raise ValueError(
            f"model.path: got a model whose {what} differs by {error:.3g} (relative) from that of its blocks "
            f"run one by one, expected at most {_PROBE_TOLERANCE}: the family can't cut this architecture"
        )


def check_complete(missing_keys: Iterable[str]) -> None:
    """Checks that all weights were in the files: transformers would make the missing ones up at random.

    Raises:
        ValueError: some are missing.
    """
    missing = sorted(missing_keys)
    if missing:
        raise ValueError(
            f"model.path: got no weights for {missing[0]} ({len(missing)} missing), expected all"
        )


def tokenizer_limit(tokenizer: Any) -> int:
    """Returns the largest number of tokens the tokenizer was made for; huge if it does not say."""
    return int(tokenizer.model_max_length)


def masked_mean(states: States) -> Tensor:
    """Returns the mean over valid positions, [B, L, D] -> [B, D]; zeros for a row without one."""
    weights = states.mask.to(states.hidden_states.dtype)[..., None]  # [B, L, 1]
    return (states.hidden_states * weights).sum(1) / weights.sum(1).clamp_min(1)
