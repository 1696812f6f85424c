"""What a student is, as a run's config says it."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["LoraSettings", "StudentConfig"]


class LoraSettings(BaseModel):
    """Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) in place of training all weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: int = Field(default=8, ge=1, description="Rank of the adapters.")
    alpha: float = Field(default=16.0, gt=0, description="Their scale is alpha / r.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Before the adapters.")
    target_modules: tuple[str, ...] = Field(
        default=(), description="Names of the linear maps that get one; empty: peft's choice for the model."
    )
    modules_to_save: tuple[str, ...] = Field(
        default=("classifier", "score"), description="Modules that are trained whole, where they exist."
    )


class StudentConfig(BaseModel):
    """The model that is trained: any torch module, or a model of Hugging Face."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factory: str | None = Field(
        default=None, description="`package.module:callable` that builds the student."
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Arguments of the factory.")
    num_classes_kwarg: str | None = Field(
        default=None, description="The factory's argument that takes the number of classes found in the data."
    )
    pretrained: str | None = Field(
        default=None, description="A Hugging Face model id or folder, instead of a factory."
    )
    from_scratch: bool = Field(
        default=False, description="Whether only the config of `pretrained` is used, with random weights."
    )
    auto_class: str | None = Field(
        default=None, description="The transformers class that loads it; null: the one for the task."
    )
    tokenizer: str | None = Field(
        default=None,
        description="A Hugging Face tokenizer for the student's texts; null: that of `pretrained`.",
    )
    lower: str | None = Field(default=None, description="Module path of S_lo, the state that is sent.")
    upper: str | None = Field(default=None, description="Module path of S_hi, which the reply meets.")
    mask: str | None = Field(
        default=None, description="The student's input that marks valid positions of those states; null: all."
    )
    frozen: tuple[str, ...] = Field(
        default=(),
        description="Parameters that are not trained: names or patterns, for example `*.embeddings.*`.",
    )
    lora: LoraSettings | None = Field(default=None, description="Trains adapters only; null: all weights.")
    gradient_checkpointing: bool = Field(
        default=False, description="Computes activations again in the backward pass, to save memory."
    )

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.factory is None) == (self.pretrained is None):
            raise ValueError("factory, pretrained: got both or neither, expected exactly one of them")
        if self.factory is None and (self.kwargs or self.num_classes_kwarg):
            raise ValueError("kwargs, num_classes_kwarg: got a value, expected none without `factory`")
        if self.pretrained is None and (self.from_scratch or self.auto_class):
            raise ValueError("from_scratch, auto_class: got a value, expected none without `pretrained`")
        return self
