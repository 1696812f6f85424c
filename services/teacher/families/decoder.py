"""Decoders of transformers built like Llama (Llama, Qwen, SmolLM): rotary positions, causal attention.

Positions are counted over valid tokens only, so it does not matter where padding stands: left, right, or in
the middle, where a message follows a padded input. What the parts give is compared with the whole model
once at load, so a decoder of another make is refused, not mistaught.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.teacher.families.transformer import (
    Parts,
    TransformerTeacher,
    check_complete,
    check_parity,
    tokenizer_limit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from services.teacher.families.base import States

__all__ = ["DecoderTeacher", "causal_mask", "position_ids"]


class DecoderTeacher(TransformerTeacher):
    """A frozen Llama-like decoder.

    It pools by taking the last valid position; its head gives the logits of the token after it.

    Args:
        rotary: maps hidden states [B, L, D] and position ids [B, L] to the rotation of queries and keys.

    The other arguments are those of `TransformerTeacher`.
    """

    family = "decoder"

    def __init__(self, parts: Parts, tokenizer: Any, *, rotary: nn.Module, **kwargs: Any) -> None:
        super().__init__(parts, tokenizer, **kwargs)
        self._rotary = rotary

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        gguf_file: str | None,
        name: str,
        max_input_len: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Self:
        """Loads a model from a folder in transformers' format or with a GGUF file.

        Args:
            folder: holds config, weights and tokenizer, or a GGUF file.
            gguf_file: the GGUF file's name; None: the only one, if the folder is not in transformers' format.
            name: the teacher's name for its students.
            max_input_len: the service's limit, in tokens.
            device: where it computes.
            dtype: what it computes in; quantized weights are expanded to it.

        Raises:
            ValueError, OSError: the model is not built like Llama, or weights or a file are missing.
        """
        files = {"gguf_file": find_gguf(folder, gguf_file), "local_files_only": True}
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, **files
        )
        check_complete(report["missing_keys"])
        tokenizer = AutoTokenizer.from_pretrained(folder, **files)
        teacher = cls(
            find_parts(model.to(device)),
            tokenizer,
            rotary=model.base_model.rotary_emb,
            name=name,
            max_len=min(max_input_len, tokenizer_limit(tokenizer), _num_positions(model.config)),
            device=device,
            dtype=dtype,
        )
        teacher.check_against(model)
        return teacher

    def _run(self, blocks: Sequence[nn.Module], states: States) -> Tensor:
        hidden_states = states.hidden_states
        mask = causal_mask(states.mask)
        positions = position_ids(states.mask)
        rotation = self._rotary(hidden_states, positions)
        for block in blocks:
            hidden_states = block(
                hidden_states, attention_mask=mask, position_ids=positions, position_embeddings=rotation
            )
        return hidden_states

    def _pool(self, states: States) -> Tensor:
        mask = states.mask
        last = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(-1)
        pooled = states.hidden_states[torch.arange(mask.shape[0], device=mask.device), last]
        return pooled * mask.any(-1, keepdim=True)

    def _head(self, head: nn.Module, states: States) -> Tensor:
        logits: Tensor = head(self._pool(states))
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
        logits = model(**inputs, use_cache=False).logits
        last = inputs["attention_mask"].sum(-1) - 1
        check_parity(self.head(states), logits[torch.arange(2, device=logits.device), last], what="output")


def find_parts(model: Any) -> Parts:
    """Finds the parts of a Llama-like model.

    Raises:
        ValueError: it has others.
    """
    base = model.base_model
    names = ("embed_tokens", "layers", "norm", "rotary_emb")
    absent = [name for name in names if not isinstance(getattr(base, name, None), nn.Module)]
    if absent:
        raise ValueError(
            f"model.path: got a {type(base).__name__} without {', '.join(absent)}, expected a model with "
            f"{', '.join(names)}, like Llama"
        )
    return Parts(
        embed=base.embed_tokens,
        blocks=base.layers,
        norm=base.norm,
        head=model.get_output_embeddings(),
        hidden_size=base.config.hidden_size,
        vocab_size=base.embed_tokens.num_embeddings,
    )


def find_gguf(folder: Path, gguf_file: str | None) -> str | None:
    """Returns the name of the GGUF file to load; None: the folder is in transformers' format.

    Raises:
        ValueError: the folder has none of this name, or several and none was named.
    """
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            raise ValueError(f"model.gguf_file: got {gguf_file!r}, expected one of {found} in {folder}")
        return gguf_file
    if (folder / "config.json").is_file() or not found:
        return None
    if len(found) > 1:
        raise ValueError(f"model.gguf_file: got null, expected one of {found}")
    return found[0]


def _num_positions(config: Any) -> int:
    """Returns the largest length at which every position attends to all before it."""
    window = getattr(config, "sliding_window", None)
    return int(min(config.max_position_embeddings, window or config.max_position_embeddings))


def position_ids(mask: Tensor) -> Tensor:
    """Counts the valid positions of each row from 0, [B, L] bool -> [B, L] int64.

    Padding gets the position of the valid token before it, or 0; nothing valid attends to it.
    """
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def causal_mask(mask: Tensor) -> Tensor:
    """Returns which keys each query attends to: the valid ones up to itself, and always itself.

    A padded query with nothing valid before it needs itself: a softmax over nothing would be NaN.

    Args:
        mask: [B, L], bool, the valid positions.

    Returns:
        [B, 1, L, L], bool.
    """
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    own = torch.eye(length, dtype=torch.bool, device=mask.device)
    return ((causal & mask[:, None, :]) | own)[:, None]
