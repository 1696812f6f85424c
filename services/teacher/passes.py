"""One pass of the teacher for the turns of many tenants, forward and backward.

Turns that agree in codec spec, rows, positions and reading form a *group*, whose codecs are computed as one
(`stacking`); groups of different shapes are padded together (`packing`) for the teacher's shared layers.

Talking Models (arXiv 2310.03188), teacher's side: T'_lo = Dec_T(m), T'_hi = upper(T'_lo), r = Enc_T(T'_hi).
The codec computes in float32 whatever the teacher computes in.

Shapes: G turns of a group, B rows, K positions of a message, M `message_dim`, L positions of the teacher's
own input, D its hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from preceptor.codec import resample
from preceptor.terms import Reading
from services.teacher.families.base import States
from services.teacher.own_reading import LOWER
from services.teacher.packing import cut_to, pack, pad_to, pad_to_buckets, unpack
from services.teacher.stacking import StackedCodecs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.teacher.families.base import Teacher
    from services.teacher.own_reading import OwnReading
    from services.teacher.transfers import Transfers
    from services.teacher.work import ExchangeTurn, Turn

__all__ = ["ExchangePass", "Gradients", "Pass", "exchange_pass", "signature"]


@dataclass(frozen=True)
class Gradients:
    """Gradients of one turn: of its message (None for an Observe) and of its codec, by name."""

    message: Tensor | None
    codec: dict[str, Tensor]


class Pass:
    """What was computed for some turns together, differentiable if they want gradients.

    Attributes:
        turns: whose pass it is.
        num_bytes: what its autograd graph keeps alive, without parameters.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns = tuple(turns)
        self.num_bytes = 0

    def values(self, turn: Turn) -> dict[str, Tensor]:
        """Returns the outputs of a turn, by name."""
        raise NotImplementedError

    def backward(self, grad_values: Mapping[Turn, Mapping[str, Tensor]]) -> dict[Turn, Gradients]:
        """Runs the backward pass for some of the turns; the graph is used up.

        Args:
            grad_values: gradients of outputs, by turn and name; outputs that are left out count as 0.
        """
        raise NotImplementedError


class _Group:
    """Turns of one spec, shape and reading."""

    def __init__(
        self, turns: Sequence[ExchangeTurn], own: Sequence[States | None], transfers: Transfers
    ) -> None:
        self.turns = tuple(turns)
        first = turns[0]
        self.reading = first.reading
        self.codecs = StackedCodecs([turn.codec for turn in turns], wants_gradient=first.wants_gradient)
        message = torch.stack([turn.message.float() for turn in turns])  # [G, B, K, M]
        self.message = transfers.to_device(message).requires_grad_(first.wants_gradient)
        self.mask = transfers.to_device(torch.cat([turn.mask for turn in turns]))  # [G*B, K]
        states = [each for each in own if each is not None]
        length = max((each.mask.shape[1] for each in states), default=0)
        self.own = pack([pad_to(each, length) for each in states]) if states else None  # [G*B, L, D]
        self.reply = self.message

    def take_in(self, dtype: torch.dtype) -> States:
        """Returns what the upper layers read: T'_lo, with T_lo(x) beside it or added where asked for."""
        decoded = self.codecs.decode(self.message).flatten(0, 1).to(dtype)  # [G*B, K, D]
        if self.own is None:
            return States(decoded, self.mask)
        own = self.own
        if self.reading is Reading.BESIDE:
            return States(torch.cat([own.hidden_states, decoded], 1), torch.cat([own.mask, self.mask], 1))
        return States(own.hidden_states + resample(decoded, self.mask, own.mask), own.mask)

    def answer(self, upper: States) -> None:
        """Encodes the reply, [G, B, K, M], from the upper layers' result."""
        hidden_states, mask = upper.hidden_states, upper.mask
        if self.own is not None and self.reading is Reading.BESIDE:
            hidden_states, mask = hidden_states[:, self.own.mask.shape[1] :], self.mask
        read = resample(hidden_states.float(), mask, self.mask)  # [G*B, K, D]
        shape = (len(self.turns), -1, *read.shape[1:])
        reply = self.codecs.encode(read.reshape(shape))
        self.own = None  # autograd has saved what it needs of it; the rest would not be counted
        self.reply = reply.masked_fill(~self.mask.reshape(*reply.shape[:-1], 1), 0.0)


class ExchangePass(Pass):
    """A pass of exchanges."""

    def __init__(self, groups: Sequence[_Group], transfers: Transfers) -> None:
        super().__init__([turn for group in groups for turn in group.turns])
        self._groups = groups
        self._transfers = transfers
        self._places = {turn: (group, index) for group in groups for index, turn in enumerate(group.turns)}

    def values(self, turn: Turn) -> dict[str, Tensor]:
        """Returns the reply, [B, K, M], float32."""
        group, index = self._places[turn]  # type: ignore[index]
        return {"reply": group.reply[index]}

    def backward(self, grad_values: Mapping[Turn, Mapping[str, Tensor]]) -> dict[Turn, Gradients]:
        """Runs one backward pass through the teacher for all the turns."""
        groups = [group for group in self._groups if any(turn in grad_values for turn in group.turns)]
        leaves = [[group.message, *group.codecs.parameters.values()] for group in groups]
        flat = torch.autograd.grad(
            [group.reply for group in groups],
            [leaf for own in leaves for leaf in own],
            [self._transfers.to_device(_grad_reply(group, grad_values)) for group in groups],
            allow_unused=True,
        )
        gradients: dict[Turn, Gradients] = {}
        taken = iter(flat)
        for group in groups:
            grad_message = next(taken)
            named = {name: next(taken) for name in group.codecs.parameters}
            for index, turn in enumerate(group.turns):
                if turn in grad_values:
                    message = torch.zeros_like(turn.message) if grad_message is None else grad_message[index]
                    gradients[turn] = Gradients(message, group.codecs.of(index, named))
        return gradients


def _grad_reply(group: _Group, grad_values: Mapping[Turn, Mapping[str, Tensor]]) -> Tensor:
    """Joins the gradients of the replies, [G, B, K, M], zero for a turn that has none."""
    none: dict[str, Tensor] = {}
    parts = [grad_values.get(turn, none).get("reply") for turn in group.turns]
    shape = group.reply.shape[1:]
    return torch.stack([torch.zeros(shape) if part is None else part.float() for part in parts])


def exchange_pass(
    teacher: Teacher,
    turns: Sequence[ExchangeTurn],
    own: Sequence[OwnReading | None],
    transfers: Transfers,
    *,
    with_graph: bool,
    in_buckets: bool = False,
) -> ExchangePass:
    """Lets the teacher interpret the messages of some turns with its own upper layers.

    Args:
        teacher: the frozen teacher.
        turns: of one split layer; all of them want gradients, or none.
        own: the teacher's reading of each turn's inputs, with its lower states; None for `replace`.
        transfers: to and from the teacher's device.
        with_graph: whether a backward pass may follow.
        in_buckets: whether rows and positions are padded to few different sizes, for compiled layers.
    """
    keyed: dict[object, list[int]] = {}
    for index, turn in enumerate(turns):
        keyed.setdefault(_group_key(turn), []).append(index)
    with torch.set_grad_enabled(with_graph):
        groups = [
            _Group(
                [turns[index] for index in indices],
                [_lower(own[index]) for index in indices],
                transfers,
            )
            for indices in keyed.values()
        ]
        chunks = [group.take_in(teacher.facts.dtype) for group in groups]
        packed = pack(chunks)
        shown = pad_to_buckets(packed) if in_buckets else packed
        upper = cut_to(teacher.upper(shown, turns[0].split_layer), packed)
        for group, result in zip(groups, unpack(upper, chunks), strict=True):
            group.answer(result)
    return ExchangePass(groups, transfers)


def _lower(reading: OwnReading | None) -> States | None:
    return None if reading is None else reading.states[LOWER]


def _group_key(turn: ExchangeTurn) -> tuple[object, ...]:
    return (turn.codec.spec, turn.message.shape, turn.reading)


def signature(turns: Sequence[ExchangeTurn]) -> tuple[object, ...]:
    """Returns what decides how many bytes the graph of a pass of these turns takes."""
    shapes = sorted(str((*_group_key(turn), turn.length)) for turn in turns)
    return (turns[0].split_layer, *shapes)
