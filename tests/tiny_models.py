"""Tiny random transformers models in a folder, for tests that need a teacher but no knowledge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tokenizers
import torch
import transformers

from services.teacher.config import ServiceConfig
from services.teacher.families import load_teacher

if TYPE_CHECKING:
    from pathlib import Path

    from services.teacher.families.base import Teacher

__all__ = ["SIZES", "load_from", "save_tiny"]

CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "vocab_size": 40,
}
SPECIALS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}


def _save_tokenizer(folder: Path, *, with_specials: bool) -> None:
    words = [*SPECIALS.values(), "a", "b", "c", "d", "teacher", "reads"]
    vocab = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, SPECIALS["unk_token"]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if with_specials:
        backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIALS)
    wrapped.save_pretrained(folder)


def save_tiny(folder: Path, kind: str) -> Any:
    """Saves a tiny random model and returns it."""
    torch.manual_seed(0)
    bert = transformers.BertConfig(**SIZES, num_labels=3)
    llama = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)
    roberta = transformers.RobertaConfig(**SIZES, num_labels=3, pad_token_id=1)
    qwen = transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=4)
    made = {
        "encoder": lambda: transformers.BertModel(bert),
        "classifier": lambda: transformers.BertForSequenceClassification(bert),
        "roberta": lambda: transformers.RobertaForSequenceClassification(roberta),
        "decoder": lambda: transformers.LlamaForCausalLM(llama),
        "qwen": lambda: transformers.Qwen3ForCausalLM(qwen),
    }[kind]()
    made.save_pretrained(folder)
    _save_tokenizer(folder, with_specials=kind not in ("decoder", "qwen"))
    return made.eval()


def load_from(
    folder: Path | str, family: str, *, max_input_len: int = 512, dtype: torch.dtype | None = None
) -> Teacher:
    config = ServiceConfig.model_validate(
        {
            "name": "tiny",
            "auth": "none",
            "model": {"family": family, "path": str(folder)},
            "limits": {"max_input_len": max_input_len},
        }
    )
    return load_teacher(config, CPU, dtype or torch.float32)
