"""A turn as a differentiable operation.

The forward pass waits for the teacher's answer; the backward pass sends the answer's gradients and returns
those of the message and of the teacher-side codec, so autograd treats the service like any other operation:
under DDP, accumulation, autocast, checkpointing and gradient scaling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from preceptor.v1 import teacher_pb2 as pb
    from student_client.client import PendingTurn

__all__ = ["differentiable", "receive"]

# Values that never depend on the message or the codec.
_CONSTANTS = frozenset({"lower_state", "upper_state", "pooled_state", "logits", "mask"})


class _RemoteTurn(torch.autograd.Function):
    """Inputs: the pending turn, names of the parameters, a box for the receipt, message, parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        pending: PendingTurn,
        names: Sequence[str],
        answer: dict[str, Any],
        message: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        device = (message if message is not None else parameters[0]).device
        result = pending.result()
        answer["names"], answer["receipt"] = tuple(result.values), result.receipt
        ctx.pending, ctx.names, ctx.value_names = pending, names, answer["names"]
        # Saved so that autograd complains, as it would locally, if one is changed before the backward pass.
        ctx.save_for_backward(message, *parameters)
        ctx.set_materialize_grads(False)
        values = tuple(value.to(device) for value in result.values.values())
        constants = [value for name, value in zip(answer["names"], values, strict=True) if name in _CONSTANTS]
        ctx.mark_non_differentiable(*constants)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        message, *parameters = ctx.saved_tensors
        grad_values = {
            name: gradient.float()
            for name, gradient in zip(ctx.value_names, grad_outputs, strict=True)
            if gradient is not None and name not in _CONSTANTS
        }
        if not grad_values:
            return (None,) * (4 + len(parameters))
        if not all(bool(torch.isfinite(gradient).all()) for gradient in grad_values.values()):
            # Gradient scaling overflows on purpose and looks for infinities: spread them, as autograd would.
            grads = [None if message is None else torch.full_like(message, torch.nan)]
            return (None, None, None, *grads, *(torch.full_like(each, torch.nan) for each in parameters))
        answer = ctx.pending.backward(grad_values)
        grad_message = None if message is None or answer.message is None else answer.message.to(message)
        grad_parameters = [
            answer.codec[name].to(parameter) if name in answer.codec else None
            for name, parameter in zip(ctx.names, parameters, strict=True)
        ]
        return (None, None, None, grad_message, *grad_parameters)


def differentiable(
    pending: PendingTurn, message: Tensor | None, parameters: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], pb.Receipt]:
    """Waits for a turn; what it returns is differentiable in the message and the codec's parameters.

    Args:
        pending: the turn, sent with `wants_gradient`.
        message: [B, K, M], what was sent, or None for an Observe.
        parameters: the teacher-side codec, by name.

    Returns:
        Values by name, on the device of the message, and the receipt.
    """
    answer: dict[str, Any] = {}
    values = _RemoteTurn.apply(  # type: ignore[no-untyped-call]
        pending, tuple(parameters), answer, message, *parameters.values()
    )
    return dict(zip(answer["names"], values, strict=True)), answer["receipt"]


def receive(pending: PendingTurn, device: torch.device) -> tuple[dict[str, Tensor], pb.Receipt]:
    """Waits for a turn that wants no gradient; values by name, on `device`, and the receipt."""
    result = pending.result()
    return {name: value.to(device) for name, value in result.values.items()}, result.receipt
