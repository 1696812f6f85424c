"""The formulas of one turn, without batches, caches or stacks: what tests hold the engine against.

Talking Models (arXiv 2310.03188), teacher's side: T'_lo = Dec_T(m), T'_hi = upper(T'_lo), r = Enc_T(T'_hi).

Shapes: B batch, K positions of a message, M `message_dim`, L positions of the teacher's own input, D its
hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from preceptor.codec import TeacherCodec, resample
from preceptor.terms import ObservationKind, Reading
from services.teacher.families.base import States, Teacher
from services.teacher.observing import codec_values

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["interpret", "observe"]


def interpret(
    teacher: Teacher,
    codec: TeacherCodec,
    message: Tensor,
    mask: Tensor,
    *,
    reading: Reading,
    split_layer: int,
    inputs: Mapping[str, Tensor] | None,
) -> Tensor:
    """Lets the teacher interpret a message with its own upper layers.

    Args:
        teacher: the frozen teacher.
        codec: Dec_T and Enc_T.
        message: [B, K, M], float32.
        mask: [B, K], bool, the message's valid positions.
        reading: how the message is taken in.
        split_layer: the talking layer.
        inputs: the prepared inputs of the same rows; needed unless `reading` is `replace`.

    Returns:
        The reply, [B, K, M], float32; zero where `mask` is false.
    """
    decoded = codec.decoder(message).to(teacher.facts.dtype)  # [B, K, D]
    if reading is Reading.REPLACE or inputs is None:
        read = teacher.upper(States(decoded, mask), split_layer)
    else:
        with torch.no_grad():
            own = teacher.lower(inputs, split_layer)
        if reading is Reading.BESIDE:
            both = States(torch.cat([own.hidden_states, decoded], 1), torch.cat([own.mask, mask], 1))
            upper = teacher.upper(both, split_layer)
            read = States(upper.hidden_states[:, own.mask.shape[1] :], mask)
        else:
            added = own.hidden_states + resample(decoded, mask, own.mask)
            read = teacher.upper(States(added, own.mask), split_layer)
    reply: Tensor = codec.encoder(read.hidden_states.float(), read.mask, mask)
    return reply.masked_fill(~mask[..., None], 0.0)


def observe(
    teacher: Teacher,
    codec: TeacherCodec | None,
    inputs: Mapping[str, Tensor],
    *,
    kinds: Collection[ObservationKind],
    split_layer: int,
    message_mask: Tensor | None,
) -> dict[str, Tensor]:
    """Lets the teacher say what it sees in an input itself.

    Args:
        teacher: the frozen teacher.
        codec: Dec_T and Enc_T; needed by the kinds that `needs_codec`.
        inputs: the prepared inputs.
        kinds: what to return.
        split_layer: the talking layer.
        message_mask: [B, K], bool, the positions messages shall have; None: those of the teacher's states.

    Returns:
        A tensor a kind, by the kind's value, and "mask" with raw states; shapes as in `ObservationKind`.

    Raises:
        UnsupportedError: logits of a teacher without a head.
    """
    with torch.no_grad():
        lower = teacher.lower(inputs, split_layer)
        upper = teacher.upper(lower, split_layer) if _needs_upper(kinds) else lower
    values: dict[str, Tensor] = {}
    if ObservationKind.LOWER_STATE in kinds:
        values[ObservationKind.LOWER_STATE] = lower.hidden_states
    if ObservationKind.UPPER_STATE in kinds:
        values[ObservationKind.UPPER_STATE] = upper.hidden_states
    if values:
        values["mask"] = lower.mask
    with torch.no_grad():
        if ObservationKind.POOLED_STATE in kinds:
            values[ObservationKind.POOLED_STATE] = teacher.pool(upper)
        if ObservationKind.LOGITS in kinds:
            values[ObservationKind.LOGITS] = teacher.head(upper)
    if codec is not None:
        values.update(codec_values(codec, kinds, lower, upper, message_mask))
    return values


def _needs_upper(kinds: Collection[ObservationKind]) -> bool:
    return any(kind not in (ObservationKind.LOWER_MESSAGE, ObservationKind.LOWER_STATE) for kind in kinds)
