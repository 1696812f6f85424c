"""The turns of a batch as one differentiable operation.

The forward pass waits for the teacher's answers; the backward pass sends the gradients of all turns, then
waits for those of the message and of the teacher-side codec. So autograd treats the service like any other
operation: under DDP, accumulation, autocast, checkpointing and gradient scaling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from preceptor.compression import WireType
from student_client.frames import join_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from preceptor.v1 import teacher_pb2 as pb
    from student_client.pending_turns import PendingTurn
    from student_client.turns import ForwardAnswer, GradientsAnswer

__all__ = ["differentiable", "receive"]

# Values that never depend on the message or the codec.
_CONSTANTS = frozenset({"lower_state", "upper_state", "pooled_state", "logits", "mask"})
_NUM_OTHER_INPUTS = 3  # turns, names, box


class _RemoteTurns(torch.autograd.Function):
    """Inputs: the turns, names of the parameters, a box for names and receipts, message, parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        turns: Sequence[PendingTurn],
        names: Sequence[str],
        box: dict[str, Any],
        message: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        device = (message if message is not None else parameters[0]).device
        answers = [turn.result() for turn in turns]
        values = _joined(answers, device)
        box["names"], box["receipts"] = tuple(values), tuple(answer.receipt for answer in answers)
        ctx.turns, ctx.names, ctx.value_names = turns, names, box["names"]
        ctx.shapes = [{name: value.shape for name, value in answer.values.items()} for answer in answers]
        # Saved so that autograd complains, as it would locally, if one is changed before the backward pass.
        ctx.save_for_backward(message, *parameters)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(value for name, value in values.items() if name in _CONSTANTS))
        return tuple(values.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        message, *parameters = ctx.saved_tensors
        grad_values = {
            name: gradient.float()
            for name, gradient in zip(ctx.value_names, grad_outputs, strict=True)
            if gradient is not None and name not in _CONSTANTS
        }
        nothing = (None,) * _NUM_OTHER_INPUTS
        if not grad_values:
            return (*nothing, None, *(None for _ in parameters))
        wire_type = ctx.turns[0].gradient_type
        if not all(_is_finite(gradient, wire_type) for gradient in grad_values.values()):
            # Gradient scaling overflows on purpose and looks for infinities: spread them, as autograd would.
            grad_message = None if message is None else torch.full_like(message, torch.nan)
            return (*nothing, grad_message, *(torch.full_like(each, torch.nan) for each in parameters))
        parts = zip(ctx.turns, _split(grad_values, ctx.shapes), strict=True)
        sent = [(turn, turn.start_backward(part)) for turn, part in parts]
        answers = [turn.gradients(gradients) for turn, gradients in sent]
        grad_parameters = [
            _total(answers, name, parameter) for name, parameter in zip(ctx.names, parameters, strict=True)
        ]
        return (*nothing, _grad_message(answers, message), *grad_parameters)


def _joined(answers: Sequence[ForwardAnswer], device: torch.device) -> dict[str, Tensor]:
    return {
        name: join_rows([answer.values[name] for answer in answers]).to(device) for name in answers[0].values
    }


def _is_finite(gradient: Tensor, wire_type: WireType) -> bool:
    """Whether all values are finite, also in the type in which they travel."""
    if wire_type in (WireType.FLOAT16, WireType.BFLOAT16):
        gradient = gradient.to(getattr(torch, wire_type.value))
    return bool(torch.isfinite(gradient).all())


def _split(
    grad_values: Mapping[str, Tensor], shapes: Sequence[Mapping[str, torch.Size]]
) -> Iterator[dict[str, Tensor]]:
    """Yields each turn's rows of the gradients, without the positions that joining them had added."""
    start = 0
    for sizes in shapes:
        rows = next(iter(sizes.values()))[0]
        yield {
            name: gradient[(slice(start, start + rows), *(slice(size) for size in sizes[name][1:2]))]
            for name, gradient in grad_values.items()
        }
        start += rows


def _grad_message(answers: Sequence[GradientsAnswer], message: Tensor | None) -> Tensor | None:
    parts = [answer.message for answer in answers if answer.message is not None]
    return None if message is None or len(parts) < len(answers) else torch.cat(parts).to(message)


def _total(answers: Sequence[GradientsAnswer], name: str, parameter: Tensor) -> Tensor | None:
    """Adds a parameter's gradients of all turns up; None if no turn used it."""
    parts = [answer.codec[name] for answer in answers if name in answer.codec]
    total = parts[0] if len(parts) == 1 else sum(parts[1:], parts[0]) if parts else None
    return None if total is None else total.to(parameter)


def differentiable(
    turns: Sequence[PendingTurn], message: Tensor | None, parameters: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[pb.Receipt, ...]]:
    """Waits for turns; what they return is differentiable in the message and the codec's parameters.

    Args:
        turns: of one batch, in the order of its rows, sent with `wants_gradient`.
        message: [B, K, M], what was sent, or None for an Observe.
        parameters: the teacher-side codec, by name.

    Returns:
        Values of the whole batch by name, on the device of the message, and the receipts.
    """
    box: dict[str, Any] = {}
    values = _RemoteTurns.apply(  # type: ignore[no-untyped-call]
        tuple(turns), tuple(parameters), box, message, *parameters.values()
    )
    return dict(zip(box["names"], values, strict=True)), box["receipts"]


def receive(
    turns: Sequence[PendingTurn], device: torch.device
) -> tuple[dict[str, Tensor], tuple[pb.Receipt, ...]]:
    """Waits for turns that want no gradient; values of the whole batch by name, and the receipts."""
    answers = [turn.result() for turn in turns]
    return _joined(answers, device), tuple(answer.receipt for answer in answers)
