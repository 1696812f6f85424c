"""What the teacher says of an input itself: the values of an Observe, from its own reading."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from preceptor.codec import resample
from preceptor.distance import state_distance
from preceptor.terms import ObservationKind
from services.teacher.own_reading import LOGITS, LOWER, POOLED, UPPER
from services.teacher.passes import Gradients, Pass

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from preceptor.codec import TeacherCodec
    from services.teacher.families.base import States
    from services.teacher.own_reading import OwnReading
    from services.teacher.work import ObserveTurn, Turn

__all__ = ["ObservePass", "codec_values", "needed_parts", "observe_pass"]

_PARTS: dict[ObservationKind, tuple[str, ...]] = {
    ObservationKind.LOWER_MESSAGE: (LOWER,),
    ObservationKind.UPPER_MESSAGE: (UPPER,),
    ObservationKind.STATE_CONSISTENCY: (LOWER, UPPER),
    ObservationKind.LOWER_STATE: (LOWER,),
    ObservationKind.UPPER_STATE: (UPPER,),
    ObservationKind.POOLED_STATE: (POOLED,),
    ObservationKind.LOGITS: (LOGITS,),
}


def needed_parts(turn: ObserveTurn) -> frozenset[str]:
    """Returns the parts of the teacher's reading that an Observe needs."""
    parts = {part for kind in turn.kinds for part in _PARTS[kind]}
    return frozenset(parts | {LOWER}) if turn.reads_lower else frozenset(parts)


class ObservePass(Pass):
    """The values of one Observe; only the codec is differentiable, the teacher's states are constants."""

    def __init__(
        self, turn: ObserveTurn, values: dict[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> None:
        super().__init__([turn])
        self._values = values
        self._parameters = parameters

    def values(self, turn: Turn) -> dict[str, Tensor]:  # noqa: ARG002 - there is one
        """Returns a tensor a kind, by the kind's value, and "mask" with raw states."""
        return self._values

    def backward(self, grad_values: Mapping[Turn, Mapping[str, Tensor]]) -> dict[Turn, Gradients]:
        """Takes the gradients of the codec's parameters that were used."""
        (turn,) = self.turns
        grads = {name: grad for name, grad in grad_values[turn].items() if self._values[name].requires_grad}
        if not grads:
            return {turn: Gradients(None, {})}
        gradients = torch.autograd.grad(
            [self._values[name] for name in grads],
            list(self._parameters.values()),
            [grad.to(self._values[name]) for name, grad in grads.items()],
            allow_unused=True,
        )
        named = zip(self._parameters, gradients, strict=True)
        return {turn: Gradients(None, {name: grad for name, grad in named if grad is not None})}


def observe_pass(turn: ObserveTurn, own: OwnReading, *, with_graph: bool) -> ObservePass:
    """Computes the values of an Observe; a reading ahead has none.

    Args:
        turn: what is asked.
        own: the teacher's reading of its inputs, with the `needed_parts`.
        with_graph: whether a backward pass may follow.
    """
    if turn.ahead:
        return ObservePass(turn, {}, {})
    values: dict[str, Tensor] = {}
    for kind, part in ((ObservationKind.LOWER_STATE, LOWER), (ObservationKind.UPPER_STATE, UPPER)):
        if kind in turn.kinds:
            values[kind] = own.states[part].hidden_states
            values["mask"] = own.states[part].mask
    for kind, part in ((ObservationKind.POOLED_STATE, POOLED), (ObservationKind.LOGITS, LOGITS)):
        if kind in turn.kinds:
            values[kind] = own.vectors[part]
    if turn.codec is None:
        return ObservePass(turn, values, {})
    with torch.set_grad_enabled(with_graph):
        lower, upper = own.states.get(LOWER), own.states.get(UPPER)
        mask = None if turn.message_mask is None else turn.message_mask.to(_device(own))
        values.update(codec_values(turn.codec, turn.kinds, lower, upper, mask))
    return ObservePass(turn, values, dict(turn.codec.named_parameters()))


def _device(own: OwnReading) -> torch.device:
    return next(iter(own.states.values())).mask.device


def codec_values(
    codec: TeacherCodec,
    kinds: Collection[ObservationKind],
    lower: States | None,
    upper: States | None,
    message_mask: Tensor | None,
) -> dict[str, Tensor]:
    """Returns the values that depend on the codec.

    Args:
        codec: Dec_T and Enc_T.
        kinds: what to return; others than those of the codec are left out.
        lower: T_lo, [B, L, D], if a kind needs it.
        upper: T_hi, [B, L, D], if a kind needs it.
        message_mask: [B, K], bool, the positions messages shall have; None: those of the states.
    """
    states = [each for each in (lower, upper) if each is not None]
    positions = states[0].mask if message_mask is None else message_mask
    values: dict[str, Tensor] = {}
    for kind, each in ((ObservationKind.LOWER_MESSAGE, lower), (ObservationKind.UPPER_MESSAGE, upper)):
        if kind in kinds and each is not None:
            message = codec.encoder(each.hidden_states.float(), each.mask, positions)
            values[kind] = message.masked_fill(~positions[..., None], 0.0)
    if ObservationKind.STATE_CONSISTENCY in kinds:
        both = [_round_trip(codec, each, positions) for each in states]
        values[ObservationKind.STATE_CONSISTENCY] = torch.stack(both).mean(0)
    return values


def _round_trip(codec: TeacherCodec, states: States, positions: Tensor) -> Tensor:
    """Returns d(Dec_T(Enc_T(T)), T) at the message's positions, [B]."""
    hidden_states = states.hidden_states.float()
    target = resample(hidden_states, states.mask, positions)
    back = codec.decoder(codec.encoder(target, positions, positions))
    return state_distance(back, target, positions)
