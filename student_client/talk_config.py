"""How a student talks with a teacher and by which losses it learns, as a run's config says it."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from preceptor.codec import CodecSpec
from preceptor.compression import Compression
from preceptor.terms import Reading

__all__ = ["ConfigSection", "Control", "LossWeights", "TalkConfig", "check_together"]

Control: TypeAlias = Literal["shuffled", "no_teacher"]


class ConfigSection(BaseModel):
    """Fields of a run that belong together."""

    # What came is left out of errors: it may be a URI with a password.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TalkConfig(ConfigSection):
    """How the student talks with the teacher."""

    codec: CodecSpec = Field(default_factory=CodecSpec, description="What messages are like.")
    reading: Reading = Field(default=Reading.ADD, description="How the teacher takes messages in.")
    split_layer: int | None = Field(default=None, ge=0, description="Talking layer; null: its default.")
    num_rounds: int = Field(default=1, ge=1, description="Round k + 1 sends Enc_S(S'_hi) of round k.")
    through_teacher: bool = Field(
        default=True, description="Whether gradients flow through the teacher or stop at the reply."
    )
    message_target: Literal["models", "turn"] = Field(
        default="models", description="L_MC between both models' readings of x, or between message and reply."
    )
    message_loss: Literal["mse", "contrastive"] = Field(
        default="mse",
        description="L_MC as a distance, or as a contrast: a row's message is told from other rows'.",
    )
    detach_teacher: bool = Field(default=True, description="Whether L_MC moves the student's end only.")
    detach_reply: bool = Field(
        default=False, description="Whether the student's state is drawn to the decoded reply, detached."
    )
    gate: bool = Field(
        default=False,
        description="Whether the decoded reply enters the student's upper state through a learned gate, "
        "S_hi + sigmoid(g) * S'_hi, in losses.grounded and interact, instead of taking its place.",
    )
    swap_probability: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="The chance that a step's task is solved with the teacher's upper layers in the place of "
        "the student's own middle (lower, message, teacher, reply, head), not by the student alone.",
    )
    control: Control | None = Field(
        default=None,
        description="What the teacher's reply is put in the place of, to see what it is worth: `shuffled` "
        "gives each row that to another one, `no_teacher` one that the codec computes alone. null: nothing.",
    )
    compression: Compression = Field(
        default_factory=Compression,
        description="How messages, replies and gradients travel; one name, for example int8, means all.",
    )
    deterministic: bool = Field(
        default=False, description="Whether results do not depend, to the last bit, on who else is served."
    )
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="Rows of one turn; a batch is several in flight together. null: all."
    )

    @model_validator(mode="after")
    def _check_swap(self) -> Self:
        if self.swap_probability and self.reading is not Reading.REPLACE:
            raise ValueError(
                f"swap_probability: got {self.swap_probability} with reading {self.reading.value!r}, "
                "expected reading: replace, as the teacher's layers read the message only"
            )
        return self

    @field_validator("compression", mode="before")
    @classmethod
    def _one_type_for_all(cls, value: object) -> object:
        return Compression.all(value) if isinstance(value, str) else value


class LossWeights(ConfigSection):
    """Weights of the losses; a loss of weight 0 is not computed."""

    task: float = Field(default=1.0, ge=0, description="Of the labels.")
    interact: float = Field(default=0.0, ge=0, description="Of d(S_hi, S'_hi).")
    message: float = Field(default=0.0, ge=0, description="Of L_MC.")
    state: float = Field(default=0.0, ge=0, description="Of L_SC.")
    grounded: float = Field(default=0.0, ge=0, description="Of the task, told by the decoded reply.")
    kd: float = Field(default=0.0, ge=0, description="Of distillation from the teacher's outputs.")
    hint: float = Field(default=0.0, ge=0, description="Of the pooled states' distance, after a map.")
    relation: float = Field(
        default=0.0, ge=0, description="Of the distances and angles between a batch's pooled states."
    )
    attention: float = Field(
        default=0.0, ge=0, description="Of where both models' states are large, over the positions."
    )
    temperature: float = Field(default=1.0, gt=0, description="Of distillation.")
    kd_source: Literal["head", "probe", "lessons"] = Field(
        default="head",
        description="What `kd` distils: the teacher's own outputs, those of a linear probe of its pooled "
        "states that is fitted to the labelled rows first, or answers of a conversation that is trained on "
        "the same rows (`lessons`), to correct the better of both, in which a first student has a say.",
    )

    @property
    def talks(self) -> bool:
        """Whether messages are exchanged."""
        return self.interact > 0 or self.grounded > 0 or self.message > 0 or self.state > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is needed at all."""
        return self.kd > 0 or self.reads_states

    @property
    def reads_states(self) -> bool:
        """Whether the student's states are read, not its outputs only."""
        return self.talks or self.hint > 0 or self.relation > 0 or self.attention > 0


def check_together(losses: LossWeights, talk: TalkConfig) -> None:
    """Refuses losses that do not go with how a student talks.

    Raises:
        ValueError: naming the fields.
    """
    of_models = losses.message > 0 and talk.message_target == "models"
    if talk.control == "no_teacher" and (of_models or losses.state):
        raise ValueError(
            "talk.control: got no_teacher with losses.message (of both models) or losses.state, expected "
            "neither: they ask for the teacher's own messages"
        )
    of_replies = losses.interact > 0 or losses.grounded > 0
    learns_of_replies = (
        of_replies
        or (losses.message > 0 and not of_models)
        or talk.swap_probability > 0
        or (losses.kd > 0 and losses.kd_source == "lessons")
    )
    if talk.control and not learns_of_replies:
        raise ValueError(
            f"talk.control: got {talk.control}, expected null: no loss is of a reply, so nothing would change"
        )
    if talk.gate and not of_replies:
        raise ValueError("talk.gate: got true, expected false without losses.interact or losses.grounded")
