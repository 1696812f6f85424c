"""How a conversation is trained before the student, as a run's config says it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from preceptor.codec import CodecSpec
from preceptor.terms import Reading
from student_client.talk_config import ConfigSection

__all__ = ["LessonsConfig"]

_BESIDE_STD = 0.5
_ADDED_STD = 0.02


class LessonsConfig(ConfigSection):
    """How a conversation is trained before the student, where `losses.kd_source` is `lessons`."""

    codec: CodecSpec = Field(
        default=CodecSpec(message_dim=32, message_len=8),
        description="What messages are like; of fixed length.",
    )
    reading: Reading = Field(
        default=Reading.BESIDE,
        description="How the teacher takes messages in; `add` for one that reads a single position.",
    )
    split_layer: int | None = Field(default=None, ge=0, description="Talking layer; null: its default.")
    num_rounds: int = Field(default=1, ge=1, description="Each further round asks about the last reply.")
    base: Literal["best", "none"] = Field(
        default="best",
        description="What replies correct: the better of the teacher's outputs and a probe's, or nothing.",
    )
    first_student: bool = Field(
        default=True,
        description="Whether a student that learnt those outputs of unlabelled rows has a say in them; with "
        "base none there is nothing to learn.",
    )
    init_std: float | None = Field(
        default=None,
        gt=0,
        description="Of a message's states at first; null: 0.5, about that of a teacher's own states, or "
        "0.02 where they are added to those.",
    )
    epochs: int = Field(
        default=20, ge=0, description="Passes over the labelled rows; with 0 there is no conversation."
    )
    batch_size: int = Field(default=32, ge=1, description="Rows a step.")
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate of AdamW, then half a cosine to 0.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to it.")

    @model_validator(mode="after")
    def _check_base(self) -> Self:
        if self.base == "none" and not self.epochs:
            raise ValueError("epochs: got 0 with base none, expected some: there would be nothing to learn")
        return self

    @property
    def position_std(self) -> float:
        """The standard deviation of a message's states at first."""
        if self.init_std is not None:
            return self.init_std
        return _ADDED_STD if self.reading is Reading.ADD else _BESIDE_STD

    @field_validator("codec")
    @classmethod
    def _check_length(cls, codec: CodecSpec) -> CodecSpec:
        if codec.message_len is None:
            raise ValueError("message_len: got null, expected a number of positions")
        return codec
