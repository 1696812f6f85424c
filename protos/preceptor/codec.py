"""The codec: how hidden states become messages and messages become hidden states.

Talking Models (arXiv 2310.03188) gives each model an encoder (hidden states to message) and a decoder
(message to hidden states). Both sides build them from one `CodecSpec`, so that the parameters a student
sends fit the modules of the service. This module knows neither teachers nor the wire.

Shapes: B batch, L positions of a model's sequence, K positions of a message, M `message_dim`, D the width of
a model's hidden states. A mask is bool, true where a position is valid.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from preceptor.v1 import teacher_pb2 as pb

__all__ = ["CodecKind", "CodecSpec", "Decoder", "Encoder", "TeacherCodec", "resample"]


class CodecKind(StrEnum):
    """What an encoder or decoder is made of."""

    LINEAR = "linear"
    TWO_LAYER = "two_layer"


_KIND_TO_PB = {CodecKind.LINEAR: pb.CODEC_KIND_LINEAR, CodecKind.TWO_LAYER: pb.CODEC_KIND_TWO_LAYER}
_KIND_FROM_PB = {value: kind for kind, value in _KIND_TO_PB.items()}


class CodecSpec(BaseModel):
    """From this both sides build the same modules."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: CodecKind = Field(
        default=CodecKind.LINEAR, description="One affine map, or two with a GELU between."
    )
    message_dim: int = Field(default=32, ge=1, description="The width of a message.")
    message_len: int | None = Field(
        default=None, ge=1, description="Positions of a message; null: as many as the student's sequence has."
    )
    hidden_dim: int | None = Field(
        default=None,
        ge=1,
        description="The width between the two maps of `two_layer`; must be null for `linear`.",
    )

    @model_validator(mode="after")
    def _check_hidden_dim(self) -> Self:
        if (self.kind is CodecKind.TWO_LAYER) != (self.hidden_dim is not None):
            raise ValueError(
                f"hidden_dim: got {self.hidden_dim} for kind {self.kind.value!r}, expected a width for "
                "'two_layer' and null for 'linear'"
            )
        return self

    def to_proto(self) -> pb.CodecSpec:
        """Returns the spec as a protocol message."""
        return pb.CodecSpec(
            kind=_KIND_TO_PB[self.kind],
            message_dim=self.message_dim,
            message_len=self.message_len or 0,
            hidden_dim=self.hidden_dim or 0,
        )

    @classmethod
    def from_proto(cls, message: pb.CodecSpec) -> CodecSpec:
        """Reads a spec from a protocol message.

        Raises:
            ValueError: naming the field that is out of range.
        """
        if message.kind not in _KIND_FROM_PB:
            known = ", ".join(pb.CodecKind.Name(kind) for kind in _KIND_FROM_PB)
            raise ValueError(f"codec.kind: got {message.kind}, expected one of {known}")
        return cls(
            kind=_KIND_FROM_PB[message.kind],
            message_dim=message.message_dim,
            message_len=message.message_len or None,
            hidden_dim=message.hidden_dim or None,
        )


def resample(hidden_states: Tensor, mask: Tensor, new_mask: Tensor) -> Tensor:
    """Spreads the valid positions of a sequence evenly over another number of positions.

    The j-th of n valid source positions covers the interval [j/n, (j+1)/n); a new position is the mean of
    the source over its own interval (area interpolation). So K = 1 gives the masked mean, a single source
    position is repeated, and equal lengths change nothing.

    Args:
        hidden_states: [B, L, D].
        mask: [B, L], bool.
        new_mask: [B, K], bool.

    Returns:
        [B, K, D]; what stands where `new_mask` is false is not defined.
    """
    if mask is new_mask or (mask.shape == new_mask.shape and bool(torch.equal(mask, new_mask))):
        return hidden_states
    source_start, source_end = _intervals(mask)
    new_start, new_end = _intervals(new_mask)
    overlap = torch.minimum(new_end[:, :, None], source_end[:, None, :]) - torch.maximum(
        new_start[:, :, None], source_start[:, None, :]
    )  # [B, K, L]
    weights = overlap.clamp_min(0) * (new_mask[:, :, None] & mask[:, None, :])
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
    return weights.to(hidden_states.dtype) @ hidden_states


def _intervals(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where each valid position starts and ends when the valid ones share [0, 1); both [B, L]."""
    count = mask.sum(-1, keepdim=True).clamp_min(1)
    rank = mask.long().cumsum(-1)
    return (rank - 1) / count, rank / count


class Encoder(nn.Module):
    """Hidden states to message: Enc_S and Enc_T of arXiv 2310.03188."""

    def __init__(self, spec: CodecSpec, model_dim: int) -> None:
        super().__init__()
        self.body = _affine(spec, model_dim, spec.message_dim)

    def forward(self, hidden_states: Tensor, mask: Tensor, message_mask: Tensor) -> Tensor:
        """Encodes [B, L, D] with mask [B, L] into a message [B, K, M] at the positions of [B, K]."""
        message: Tensor = self.body(resample(hidden_states, mask, message_mask))
        return message


class Decoder(nn.Module):
    """Message to hidden states: Dec_S and Dec_T of arXiv 2310.03188.

    With a fixed `message_len` every position has a learned constant of its own, so that positions can take
    different roles even in a model that does not know their order.
    """

    def __init__(self, spec: CodecSpec, model_dim: int) -> None:
        super().__init__()
        self.body = _affine(spec, spec.message_dim, model_dim)
        self.position = (
            nn.Parameter(torch.randn(spec.message_len, model_dim) * 0.02) if spec.message_len else None
        )

    def forward(self, message: Tensor) -> Tensor:
        """Decodes a message [B, K, M] into hidden states [B, K, D]."""
        hidden_states: Tensor = self.body(message)
        return hidden_states if self.position is None else hidden_states + self.position


def _affine(spec: CodecSpec, in_dim: int, out_dim: int) -> nn.Module:
    if spec.hidden_dim is None:
        return nn.Linear(in_dim, out_dim)
    return nn.Sequential(nn.Linear(in_dim, spec.hidden_dim), nn.GELU(), nn.Linear(spec.hidden_dim, out_dim))


class TeacherCodec(nn.Module):
    """The teacher-side half of the codec, Dec_T and Enc_T.

    It runs on the service but is owned by the student: its parameters are in the student's optimizer and
    checkpoint, and the service holds copies of them by version.
    """

    def __init__(self, spec: CodecSpec, teacher_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.decoder = Decoder(spec, teacher_dim)
        self.encoder = Encoder(spec, teacher_dim)

    @staticmethod
    def shapes(spec: CodecSpec, teacher_dim: int) -> dict[str, torch.Size]:
        """Returns the names and shapes of the parameters, without allocating them."""
        with torch.device("meta"):
            codec = TeacherCodec(spec, teacher_dim)
        return {name: parameter.shape for name, parameter in codec.named_parameters()}
