"""Encoders of transformers that are built like BERT: embeddings and a stack of layers, attention both ways.

Attention is passed as a bool mask, as the model itself would (`attn_implementation="sdpa"`). What the parts
give is compared with the whole model once at load, so an encoder of another make is refused, not mistaught.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from services.teacher.families.transformer import (
    Parts,
    TransformerTeacher,
    check_complete,
    check_parity,
    masked_mean,
    tokenizer_limit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from services.teacher.families.base import States

__all__ = ["EncoderTeacher", "padding_mask"]


class EncoderTeacher(TransformerTeacher):
    """A frozen BERT-like encoder.

    It pools by the mean over valid positions, as sentence-transformers does. It has a head only if the model
    was saved as a sequence classifier; the head then reads the first position, as it was trained to.
    """

    family = "encoder"

    @classmethod
    def load(
        cls, folder: Path, *, name: str, max_input_len: int, device: torch.device, dtype: torch.dtype
    ) -> Self:
        """Loads a model from a folder in transformers' format.

        Args:
            folder: holds config, weights and tokenizer.
            name: the teacher's name for its students.
            max_input_len: the service's limit, in tokens.
            device: where it computes.
            dtype: what it computes in.

        Raises:
            ValueError: the model is not built like BERT, or some of its weights are missing.
            OSError: a file is missing.
        """
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        classifies = any("ForSequenceClassification" in kind for kind in config.architectures or ())
        auto_class = AutoModelForSequenceClassification if classifies else AutoModel
        model, report = auto_class.from_pretrained(
            folder, local_files_only=True, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
        # A pooler that no head reads is not used, so its weights may be missing (they are random then).
        check_complete(key for key in report["missing_keys"] if classifies or not key.startswith("pooler."))
        model = model.eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        teacher = cls(
            find_parts(model),
            tokenizer,
            name=name,
            max_len=min(max_input_len, tokenizer_limit(tokenizer), _num_positions(model)),
            device=device,
            dtype=dtype,
        )
        teacher.check_against(model)
        return teacher

    def _run(self, blocks: Sequence[nn.Module], states: States) -> Tensor:
        hidden_states = states.hidden_states
        mask = padding_mask(states.mask)
        for block in blocks:
            hidden_states = block(hidden_states, attention_mask=mask)
        return hidden_states

    def _pool(self, states: States) -> Tensor:
        return masked_mean(states)

    def _head(self, head: nn.Module, states: States) -> Tensor:
        logits: Tensor = head(states.hidden_states)
        return logits

    @torch.no_grad()
    def check_against(self, model: Any) -> None:
        """Compares the parts, run by hand, with the whole model.

        Raises:
            ValueError: they differ.
        """
        inputs = self.probe_inputs()
        middle = self.facts.num_layers // 2
        states = self.upper(self.lower(inputs, middle), middle)
        expected = model.base_model(**inputs).last_hidden_state
        check_parity(states.hidden_states[states.mask], expected[states.mask], what="last hidden state")
        if self.facts.has_head:
            check_parity(self.head(states), model(**inputs).logits, what="output")


class _ClassifierHead(nn.Module):
    """The pooler, where the model has one, and the classifier of a sequence classifier."""

    def __init__(self, pooler: nn.Module | None, classifier: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler
        self.classifier = classifier

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps [B, L, D] to [B, outputs]."""
        logits: Tensor = self.classifier(hidden_states if self.pooler is None else self.pooler(hidden_states))
        return logits


def find_parts(model: Any) -> Parts:
    """Finds the parts of a BERT-like model.

    Raises:
        ValueError: it has others.
    """
    base = model.base_model
    embed: Any = getattr(base, "embeddings", None)
    blocks = getattr(getattr(base, "encoder", None), "layer", None)
    positions = getattr(embed, "position_embeddings", None)
    if not isinstance(blocks, nn.ModuleList) or not isinstance(positions, nn.Embedding):
        raise ValueError(  # noqa: TRY004 - a wrong value of the config
            f"model.path: got a {type(base).__name__}, expected a model with `encoder.layer` and "
            "`embeddings.position_embeddings`, like BERT"
        )
    classifier = getattr(model, "classifier", None)
    return Parts(
        embed=embed,
        blocks=blocks,
        norm=None,
        head=None if classifier is None else _ClassifierHead(getattr(base, "pooler", None), classifier),
        hidden_size=base.config.hidden_size,
        vocab_size=base.get_input_embeddings().num_embeddings,
    )


def _num_positions(model: Any) -> int:
    """Returns how many positions the model has embeddings for."""
    table = model.base_model.embeddings.position_embeddings
    # RoBERTa counts from behind the id of its padding.
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    return int(table.num_embeddings - first)


def padding_mask(mask: Tensor) -> Tensor:
    """Returns which keys each query attends to.

    Args:
        mask: [B, L], bool, the valid positions.

    Returns:
        [B, 1, L, L], bool. In a row without a valid position all attend to all: a softmax over nothing would
        be NaN there.
    """
    keys = mask | ~mask.any(-1, keepdim=True)
    batch, length = mask.shape
    return keys[:, None, None, :].expand(batch, 1, length, length)
