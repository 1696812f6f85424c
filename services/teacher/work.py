"""What the compute thread is asked to do, and what it gives back.

Everything here was checked before: tensors have the right types, shapes and finite values. A `Turn` holds
what is needed to compute its graph again, so a graph that was dropped costs time and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from preceptor.terms import Reading
from services.teacher.talking import interpret, observe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from preceptor.codec import TeacherCodec
    from preceptor.terms import ObservationKind
    from services.teacher.families.base import Teacher

__all__ = [
    "ExchangeTurn",
    "ForwardResult",
    "GradientsResult",
    "Graph",
    "ObserveTurn",
    "Turn",
    "compute_gradients",
]


@dataclass(frozen=True, eq=False)
class ExchangeTurn:
    """An Exchange, ready to be computed.

    Attributes:
        codec: the codec version in force, on the teacher's device.
        codec_version: its number.
        message: [B, K, M], float32, on the CPU.
        mask: [B, K], bool.
        reading: how the teacher takes the message in.
        split_layer: the talking layer.
        inputs: prepared inputs of the teacher, if the reading needs them.
        wants_gradient: whether gradients may be asked for.
    """

    codec: TeacherCodec
    codec_version: int
    message: Tensor
    mask: Tensor
    reading: Reading
    split_layer: int
    inputs: Mapping[str, Tensor] | None
    wants_gradient: bool

    def forward(self, teacher: Teacher) -> Graph:
        """Computes the reply, with its graph if gradients are wanted."""
        device = teacher.device
        message = self.message.to(device=device, dtype=torch.float32)
        if self.wants_gradient:
            message = message.detach().requires_grad_()
        with torch.set_grad_enabled(self.wants_gradient):
            reply = interpret(
                teacher,
                self.codec,
                message,
                self.mask.to(device),
                reading=self.reading,
                split_layer=self.split_layer,
                inputs=None if self.inputs is None else _to_device(self.inputs, device),
            )
        return Graph({"reply": reply}, message, dict(self.codec.named_parameters()))

    @property
    def held_bytes(self) -> int:
        """Bytes of its tensors, without the codec."""
        return _num_bytes([self.message, self.mask, *(self.inputs or {}).values()])

    @property
    def num_tokens(self) -> int:
        """Positions that go through the teacher's upper layers."""
        own = 0 if self.inputs is None else _num_positions(self.inputs)
        return own if self.reading is Reading.ADD else own + self.mask.numel()


@dataclass(frozen=True, eq=False)
class ObserveTurn:
    """An Observe, ready to be computed.

    Attributes:
        codec: the codec version in force, or None if no kind needs it.
        codec_version: its number, 0 without a codec.
        inputs: prepared inputs of the teacher.
        kinds: what to return.
        split_layer: the talking layer.
        message_mask: [B, K], bool, the positions that messages shall have; None: those of the states.
        wants_gradient: whether gradients may be asked for.
    """

    codec: TeacherCodec | None
    codec_version: int
    inputs: Mapping[str, Tensor]
    kinds: frozenset[ObservationKind]
    split_layer: int
    message_mask: Tensor | None
    wants_gradient: bool

    def forward(self, teacher: Teacher) -> Graph:
        """Computes the values, with their graph if gradients are wanted."""
        device = teacher.device
        with torch.set_grad_enabled(self.wants_gradient):
            values = observe(
                teacher,
                self.codec,
                _to_device(self.inputs, device),
                kinds=self.kinds,
                split_layer=self.split_layer,
                message_mask=None if self.message_mask is None else self.message_mask.to(device),
            )
        return Graph(values, None, {} if self.codec is None else dict(self.codec.named_parameters()))

    @property
    def held_bytes(self) -> int:
        """Bytes of its tensors, without the codec."""
        masks = [] if self.message_mask is None else [self.message_mask]
        return _num_bytes([*self.inputs.values(), *masks])

    @property
    def num_tokens(self) -> int:
        """Positions that go through the teacher."""
        return _num_positions(self.inputs)


Turn = ExchangeTurn | ObserveTurn


@dataclass(eq=False)
class Graph:
    """The result of a turn's forward pass, differentiable if the turn wants gradients.

    Attributes:
        values: the outputs, by name.
        message: the leaf that the message's gradient is taken at, or None.
        parameters: the codec's parameters, by name.
        num_bytes: what the autograd graph keeps alive, without parameters.
    """

    values: dict[str, Tensor]
    message: Tensor | None
    parameters: dict[str, Tensor]
    num_bytes: int = field(default=0)


@dataclass(frozen=True)
class ForwardResult:
    """What a forward pass gives: outputs by name, detached, on the CPU, and its cost."""

    values: dict[str, Tensor]
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True)
class GradientsResult:
    """What a backward pass gives, on the CPU, and its cost.

    Attributes:
        message: the gradient of the message, [B, K, M], or None for an Observe.
        codec: gradients of the codec's parameters that were used, by name.
        retained: whether the forward pass's graph was still there.
        queue_ms: milliseconds in the queue.
        compute_ms: milliseconds of computation.
    """

    message: Tensor | None
    codec: dict[str, Tensor]
    retained: bool
    queue_ms: float
    compute_ms: float


def compute_gradients(
    graph: Graph, grad_values: Mapping[str, Tensor]
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Runs the backward pass of a turn; the graph is used up.

    Args:
        graph: of a turn that wants gradients.
        grad_values: gradients of the outputs, by name; outputs that are left out count as 0.

    Returns:
        The gradient of the message (None for an Observe) and those of the codec's parameters that were
        used, by name.
    """
    outputs = [name for name in grad_values if graph.values[name].requires_grad]
    leaves = dict(graph.parameters)
    if graph.message is not None:
        leaves[""] = graph.message  # no parameter has an empty name
    if not outputs:
        return None if graph.message is None else torch.zeros_like(graph.message), {}
    gradients = torch.autograd.grad(
        [graph.values[name] for name in outputs],
        list(leaves.values()),
        [grad_values[name].to(graph.values[name]) for name in outputs],
        allow_unused=True,
    )
    by_name = {name: grad for name, grad in zip(leaves, gradients, strict=True) if grad is not None}
    grad_message = by_name.pop("", None)
    if grad_message is None and graph.message is not None:
        grad_message = torch.zeros_like(graph.message)
    return grad_message, by_name


def _to_device(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _num_positions(inputs: Mapping[str, Tensor]) -> int:
    """Returns batch x length of the widest input of ids, or the batch size."""
    return max(tensor.shape[0] * (tensor.shape[1] if tensor.ndim > 1 else 1) for tensor in inputs.values())
