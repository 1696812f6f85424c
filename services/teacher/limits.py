"""What a service accepts of its students."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["LimitsConfig"]


class LimitsConfig(BaseModel):
    """What the service accepts; beyond it a frame is refused, or a conversation ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_frame_bytes: int = Field(default=16 * 2**20, ge=4096, description="Bytes of one frame.")
    max_batch_size: int = Field(default=1024, ge=1, description="Rows of one message or input.")
    max_message_len: int = Field(default=512, ge=1, description="Positions of one message.")
    max_message_dim: int = Field(default=4096, ge=1, description="Width of a message.")
    max_input_len: int = Field(default=512, ge=1, description="Positions of one input; longer texts are cut.")
    max_text_characters: int = Field(default=2**19, ge=1, description="Characters of all texts of one turn.")
    max_turn_tokens: int = Field(default=2**17, ge=1, description="Rows x positions that one turn computes.")
    max_turns_in_flight: int = Field(default=32, ge=1, description="Unanswered turns of one conversation.")
    max_retained_turns: int = Field(default=64, ge=1, description="Turns kept for gradients, a conversation.")
    max_kept_bytes: int = Field(
        default=256 * 2**20, ge=0, description="Bytes of turns and codecs kept, a conversation."
    )
    max_replica_kept_bytes: int = Field(
        default=8 * 2**30,
        ge=0,
        description="Bytes of turns and codecs kept, a replica; past it tenants with more than an equal part "
        "of it keep less.",
    )
    max_codec_parameters: int = Field(default=16 * 10**6, ge=1, description="Parameters of a codec.")
    max_queued_tokens: int = Field(
        default=2**20,
        ge=1,
        description="Positions waiting for the teacher, a replica; past it: come back later.",
    )
    credit_bytes: int = Field(
        default=64 * 2**20, ge=8192, description="Bytes a student may send before they are answered."
    )
    max_conversations: int = Field(default=256, ge=1, description="Conversations, a replica.")
    max_conversations_per_tenant: int | None = Field(
        default=None,
        ge=1,
        description="Conversations of one team, a replica, if its own entry says nothing; null: half of all.",
    )
    max_open_s: float = Field(
        default=10.0, gt=0, description="Seconds in which a stream has to open its conversation."
    )
    max_idle_s: float = Field(
        default=600.0,
        gt=0,
        description="Seconds without a frame, or a turn to answer, after which a conversation is closed; its "
        "student opens another with its next turn.",
    )
    max_unread_s: float = Field(
        default=120.0,
        gt=0,
        description="Seconds for which a student may leave an answer unread; then it is cut off.",
    )
    max_conversation_s: float | None = Field(
        default=None, gt=0, description="Seconds after which it is closed in any case; null: never."
    )

    @model_validator(mode="after")
    def _check_credit(self) -> Self:
        # Three quarters of it are with a student whose frames are all answered (see `credit`).
        if self.credit_bytes < 2 * self.max_frame_bytes:
            raise ValueError(
                f"credit_bytes: got {self.credit_bytes}, expected at least twice max_frame_bytes, "
                f"{2 * self.max_frame_bytes}"
            )
        return self
