"""The codecs of several turns computed as one.

Every conversation has a codec of its own, of the same shape as many others. Their parameters are stacked, so
that a batch of G turns takes one batched matrix product where it would take G, forward and backward, and the
gradients of all of them come out of one stacked leaf.

Shapes: G turns, B rows, K positions, M `message_dim`, D the teacher's hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from preceptor.codec import TeacherCodec

__all__ = ["StackedCodecs"]


class StackedCodecs:
    """Several codecs of one spec; a single one is used as it is.

    Args:
        codecs: on one device; the same codec may come several times.
        wants_gradient: whether `parameters` are leaves whose gradients are taken.

    Attributes:
        parameters: by name, [G, ...] each; not stacked for a single codec.
    """

    def __init__(self, codecs: Sequence[TeacherCodec], *, wants_gradient: bool) -> None:
        self._num_codecs = len(codecs)
        if len(codecs) == 1:
            # Not the parameters themselves: another group of the pass may have the same codec, and the
            # gradients of one leaf could not be told apart. They always require one, since matmul rounds
            # otherwise (and is slower) for those that don't.
            self.parameters = {
                name: parameter.detach().requires_grad_() for name, parameter in codecs[0].named_parameters()
            }
            return
        states = [dict(codec.named_parameters()) for codec in codecs]
        self.parameters = {
            name: torch.stack([state[name].detach() for state in states]).requires_grad_(wants_gradient)
            for name in states[0]
        }

    def decode(self, message: Tensor) -> Tensor:
        """Applies Dec_T, [G, B, K, M] -> [G, B, K, D]."""
        decoded = self._body("decoder.body", message)
        position = self.parameters.get("decoder.position")
        if position is None:
            return decoded
        return decoded + (position if position.ndim == 2 else position[:, None])  # noqa: PLR2004 - [(G,) K, D]

    def encode(self, hidden_states: Tensor) -> Tensor:
        """Applies Enc_T to states at a message's positions, [G, B, K, D] -> [G, B, K, M]."""
        return self._body("encoder.body", hidden_states)

    def of(self, index: int, values: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Returns what belongs to one codec of values named and shaped as `parameters`."""
        present = {name: value for name, value in values.items() if value is not None}
        return present if self._num_codecs == 1 else {name: value[index] for name, value in present.items()}

    def _body(self, prefix: str, inputs: Tensor) -> Tensor:
        if f"{prefix}.weight" in self.parameters:
            return self._affine(prefix, inputs)
        hidden = functional.gelu(self._affine(f"{prefix}.0", inputs))
        return self._affine(f"{prefix}.2", hidden)

    def _affine(self, name: str, inputs: Tensor) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        if self._num_codecs == 1:
            return functional.linear(inputs, weight, bias)
        groups, rows, positions, _ = inputs.shape
        flat = inputs.reshape(groups, rows * positions, -1)
        product = torch.baddbmm(bias[:, None], flat, weight.transpose(1, 2))
        return product.reshape(groups, rows, positions, -1)
