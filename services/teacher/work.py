"""What the compute thread is asked to do, and what it gives back.

Everything here was checked before: tensors have the right types, shapes and finite values. A turn holds what
is needed to compute it again, so a graph that was dropped costs time and nothing else.

Shapes: B batch, K positions of a message, M `message_dim`, L positions of the teacher's own input.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from preceptor.terms import ObservationKind, Reading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from preceptor.codec import TeacherCodec

__all__ = [
    "BackwardWork",
    "Cost",
    "ExchangeTurn",
    "ForwardResult",
    "ForwardWork",
    "GradientsResult",
    "ObserveTurn",
    "Speaker",
    "Turn",
    "Work",
]


@dataclass(frozen=True)
class Speaker:
    """Who asks.

    Attributes:
        tenant: among whom service is shared fairly.
        conversation: its id.
        deterministic: whether results must not depend, in their last bit, on who else is served.
    """

    tenant: str
    conversation: str
    deterministic: bool = False


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
        speaker: who asks.
    """

    codec: TeacherCodec
    codec_version: int
    message: Tensor
    mask: Tensor
    reading: Reading
    split_layer: int
    inputs: Mapping[str, Tensor] | None
    wants_gradient: bool
    speaker: Speaker

    @property
    def held_bytes(self) -> int:
        """Bytes of its tensors, without the codec."""
        return sum(tensor.nbytes for tensor in (self.message, self.mask, *(self.inputs or {}).values()))

    @property
    def num_rows(self) -> int:
        """B."""
        return int(self.message.shape[0])

    @property
    def length(self) -> int:
        """Positions of one row that go through the teacher's upper layers."""
        own = 0 if self.inputs is None else _length(self.inputs)
        return own if self.reading is Reading.ADD else own + int(self.mask.shape[1])

    @property
    def num_tokens(self) -> int:
        """Positions that go through the teacher's upper layers."""
        return self.num_rows * self.length


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
        speaker: who asks.
        ahead: whether the teacher only reads ahead, and returns nothing.
        reads_lower: whether exchanges of the conversation will need the lower states.
    """

    codec: TeacherCodec | None
    codec_version: int
    inputs: Mapping[str, Tensor]
    kinds: frozenset[ObservationKind]
    split_layer: int
    message_mask: Tensor | None
    wants_gradient: bool
    speaker: Speaker
    ahead: bool = False
    reads_lower: bool = False

    @property
    def held_bytes(self) -> int:
        """Bytes of its tensors, without the codec."""
        masks = [] if self.message_mask is None else [self.message_mask]
        return sum(tensor.nbytes for tensor in (*self.inputs.values(), *masks))

    @property
    def num_rows(self) -> int:
        """B."""
        return int(next(iter(self.inputs.values())).shape[0])

    @property
    def length(self) -> int:
        """Positions of one row that go through the teacher."""
        return _length(self.inputs)

    @property
    def num_tokens(self) -> int:
        """Positions that go through the teacher."""
        return self.num_rows * self.length


Turn: TypeAlias = ExchangeTurn | ObserveTurn


@dataclass(frozen=True)
class Cost:
    """What a computation cost.

    Attributes:
        queue_ms: milliseconds from admission to its start.
        compute_ms: milliseconds of computation, shared with those it was computed with.
        num_conversations: conversations that shared it, its own included.
        num_tenants: tenants that shared it, its own included.
        num_cached_rows: rows of its inputs whose reading came from the cache.
        share_ms: its part of `compute_ms`, by tokens.
    """

    queue_ms: float
    compute_ms: float
    num_conversations: int = 1
    num_tenants: int = 1
    num_cached_rows: int = 0
    share_ms: float = 0.0


@dataclass(frozen=True)
class ForwardResult:
    """What a forward pass gives: outputs by name, detached, on the CPU, and its cost."""

    values: dict[str, Tensor]
    cost: Cost


@dataclass(frozen=True)
class GradientsResult:
    """What a backward pass gives, on the CPU, and its cost.

    Attributes:
        message: the gradient of the message, [B, K, M], or None for an Observe.
        codec: gradients of the codec's parameters that were used, by name.
        retained: whether the forward pass's graph was still there.
        cost: what it cost.
    """

    message: Tensor | None
    codec: dict[str, Tensor]
    retained: bool
    cost: Cost


@dataclass(eq=False)
class ForwardWork:
    """A turn whose outputs are wanted; `admitted_s` is the clock's time when it came."""

    turn: Turn
    admitted_s: float
    future: Future[ForwardResult] = field(default_factory=Future)


@dataclass(eq=False)
class BackwardWork:
    """A turn whose gradients are wanted, with the gradients of its outputs by name."""

    turn: Turn
    admitted_s: float
    grad_values: Mapping[str, Tensor]
    future: Future[GradientsResult] = field(default_factory=Future)


Work: TypeAlias = ForwardWork | BackwardWork


def _length(inputs: Mapping[str, Tensor]) -> int:
    """Returns the length of the longest input of a row, 1 for inputs without positions."""
    return max(int(tensor.shape[1]) if tensor.ndim > 1 else 1 for tensor in inputs.values())
