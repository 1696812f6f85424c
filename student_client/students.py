"""Builds students: any module by import path, any model of Hugging Face, and a small transformer for texts.

The built-in student starts from nothing: hashed words, learned positions, pre-norm blocks, a mean over valid
positions and a linear head.
"""

from __future__ import annotations

import difflib
import fnmatch
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from student_client.factories import load_factory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from student_client.data_config import Task
    from student_client.student_config import LoraSettings, StudentConfig

__all__ = ["TextStudent", "build_student", "logits_of"]


def build_student(
    config: StudentConfig,
    *,
    num_classes: int,
    task: Task = "classification",
    python_path: Sequence[Path] = (),
) -> nn.Module:
    """Builds a student from its config.

    Args:
        config: names the factory or the pretrained model.
        num_classes: of the data; 0 for regression.
        task: what the labels are.
        python_path: folders to import the factory from, before all others.

    Raises:
        ValueError: the factory can't be imported, or gives no module; a field does not fit the model.
    """
    if config.factory is not None:
        student = _from_factory(config, config.factory, num_classes, python_path)
    else:
        student = _from_pretrained(config, num_classes, task)
    if config.gradient_checkpointing:
        _enable_checkpointing(student)
    _freeze(student, config.frozen)
    return student if config.lora is None else _with_adapters(student, config.lora, config.frozen)


def logits_of(output: Any) -> Tensor:
    """Returns a student's outputs, [B, C] or [B, L, C]: a tensor, the first of a tuple, or `.logits`.

    Raises:
        TypeError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, tuple) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"student: got a {type(output).__name__}, expected a tensor, or one with logits")
    return found


def _from_factory(
    config: StudentConfig, factory_path: str, num_classes: int, python_path: Sequence[Path]
) -> nn.Module:
    factory = load_factory(factory_path, python_path, "student.factory")
    kwargs: dict[str, Any] = dict(config.kwargs)
    if config.num_classes_kwarg:
        kwargs.setdefault(config.num_classes_kwarg, max(num_classes, 1))  # a number is one output
    try:
        student = factory(**kwargs)
    except TypeError as error:
        raise ValueError(f"student.kwargs: got {sorted(kwargs)} for {factory_path}: {error}") from None
    if not isinstance(student, nn.Module):
        raise ValueError(  # noqa: TRY004 - a wrong config, not a wrong call
            f"student.factory: {factory_path} gave a {type(student).__name__}, expected a torch module"
        )
    return student


def _from_pretrained(config: StudentConfig, num_classes: int, task: Task) -> nn.Module:
    """Loads a model of Hugging Face, with a head that fits the labels."""
    import transformers  # noqa: PLC0415 - heavy

    names = {number: f"LABEL_{number}" for number in range(max(num_classes, 1))}
    labels: dict[str, Any] = {"id2label": names, "label2id": {name: n for n, name in names.items()}}
    if task == "regression":
        labels["problem_type"] = "regression"
    try:
        settings = transformers.AutoConfig.from_pretrained(config.pretrained, **labels)
        auto_class = _class_of_transformers(config.auto_class or _auto_class(settings, task))
        if config.from_scratch:
            build = getattr(auto_class, "from_config", None) or auto_class
            student = build(settings)
        else:
            student = auto_class.from_pretrained(
                config.pretrained, config=settings, dtype=torch.float32, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError) as error:
        raise ValueError(f"student.pretrained: got {config.pretrained!r}: {error}") from None
    return cast("nn.Module", student)


def _class_of_transformers(name: str) -> Any:
    import transformers  # noqa: PLC0415 - heavy

    found = getattr(transformers, name, None)
    if found is None:
        raise ValueError(f"auto_class: got {name!r}, expected a class of transformers")
    return found


def _auto_class(settings: Any, task: Task) -> str:
    if task == "tokens":
        return "AutoModelForTokenClassification"
    is_vision = hasattr(settings, "image_size") and hasattr(settings, "num_channels")
    return "AutoModelForImageClassification" if is_vision else "AutoModelForSequenceClassification"


def _enable_checkpointing(student: nn.Module) -> None:
    # Reentrant checkpointing computes states without a graph: a message could not send gradients back.
    settings = {"use_reentrant": False}
    if hasattr(student, "activation_checkpointing_enable"):  # its name in newer releases of transformers
        cast("Any", student).activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    elif hasattr(student, "gradient_checkpointing_enable"):
        cast("Any", student).gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    else:
        raise ValueError(
            f"student.gradient_checkpointing: got true for a {type(student).__name__}, expected a model of "
            "transformers"
        )


def _freeze(student: nn.Module, patterns: Sequence[str]) -> None:
    """Takes parameters out of the training, by module path or pattern of their names."""
    names = [name for name, _ in student.named_parameters()]
    for pattern in patterns:
        found = [n for n in names if fnmatch.fnmatchcase(n, pattern) or n.startswith(pattern + ".")]
        if not found:
            close = difflib.get_close_matches(pattern, names, n=3) or names[:3]
            raise ValueError(
                f"student.frozen: got {pattern!r}, no parameter's name; did you mean {' or '.join(close)}?"
            )
        for name in found:
            student.get_parameter(name).requires_grad = False


def _with_adapters(student: nn.Module, settings: LoraSettings, frozen: Sequence[str]) -> nn.Module:
    """Freezes the student and gives it low-rank adapters; what `frozen` names is not trained whole either."""
    import peft  # noqa: PLC0415 - heavy

    modules = {
        name.rpartition(".")[2]
        for name, module in student.named_modules()
        if not frozen or any(parameter.requires_grad for parameter in module.parameters())
    }
    config = peft.LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules) or None,
        modules_to_save=[name for name in settings.modules_to_save if name in modules] or None,
    )
    try:
        return cast("nn.Module", peft.get_peft_model(student, config))
    except ValueError as error:
        raise ValueError(f"student.lora: {error}") from None


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
        per_token: whether it classifies each position instead of the whole text.
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
        per_token: bool = False,  # noqa: FBT001, FBT002 - written by name in a config
    ) -> None:
        super().__init__()
        self.per_token = per_token
        self.embed = nn.Embedding(vocab_size, dim, padding_idx=0)
        self.position = nn.Parameter(torch.randn(max_len, dim) * 0.02)
        self.blocks = nn.ModuleList(_Block(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns logits, [B, (L,) num_classes], of ids [B, L] and their mask [B, L], bool, or 1 and 0."""
        mask = attention_mask.bool()
        states = self.embed(input_ids) + self.position[: input_ids.shape[1]]
        for block in self.blocks:
            states = block(states, mask)
        states = self.norm(states)
        if not self.per_token:
            valid = mask[..., None]
            states = (states * valid).sum(1) / valid.sum(1).clamp_min(1)
        logits: Tensor = self.head(states)
        return logits


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        # Without biases: that of the keys changes nothing, so its gradient is rounding only, and AdamW would
        # make steps of it that differ with how a batch is shared out.
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout, bias=False, batch_first=True)
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
