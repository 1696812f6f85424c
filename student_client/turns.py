"""What a student remembers of a turn, so that it can be sent again to any replica, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from preceptor import wire
from preceptor.v1 import teacher_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from preceptor.v1 import tensor_pb2 as tensors

__all__ = ["CodecSnapshot", "CodecVersions", "ForwardAnswer", "GradientsAnswer", "Talk", "Turn"]


class CodecSnapshot:
    """One version of the teacher-side codec, as it goes over the wire.

    Args:
        version: its number, positive.
        parameters: by name; copied.
    """

    def __init__(self, version: int, parameters: Mapping[str, Tensor]) -> None:
        self.version = version
        self.parameters = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._encoded: list[tensors.NamedTensor] | None = None

    def frames(self, max_bytes: int) -> Iterator[pb.ConverseRequest]:
        """Yields the frames that announce the version, each about `max_bytes` or one tensor."""
        if self._encoded is None:
            self._encoded = wire.encode_named(self.parameters)
        part, num_bytes = pb.SetCodec(version=self.version), 0
        for tensor in self._encoded:
            if num_bytes and num_bytes + tensor.ByteSize() > max_bytes:
                yield pb.ConverseRequest(set_codec=part)
                part, num_bytes = pb.SetCodec(version=self.version), 0
            part.tensors.append(tensor)
            num_bytes += tensor.ByteSize()
        part.complete = True
        yield pb.ConverseRequest(set_codec=part)


class CodecVersions:
    """Numbers the contents of a codec as it changes."""

    def __init__(self) -> None:
        self._last: CodecSnapshot | None = None

    def current(self, parameters: Mapping[str, Tensor]) -> CodecSnapshot:
        """Returns the present content: the last snapshot, or a new one if anything changed since.

        Content is compared, not version counters: `parameter.data` changes one without the other.
        """
        last = self._last
        if last is None or not _equal(last.parameters, parameters):
            last = CodecSnapshot(1 if last is None else last.version + 1, parameters)
            self._last = last
        return last


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(
        first[name].device == tensor.device and torch.equal(first[name], tensor)
        for name, tensor in second.items()
    )


@dataclass(frozen=True, eq=False)
class Turn:
    """An Exchange or Observe.

    Attributes:
        number: unique in its conversation.
        frame: as it goes over the wire.
        codec: the version it names, or None if it needs none.
    """

    number: int
    frame: pb.ConverseRequest
    codec: CodecSnapshot | None


@dataclass(frozen=True)
class ForwardAnswer:
    """What a turn returned: values by name ("reply" for an Exchange) and its cost."""

    values: dict[str, Tensor]
    receipt: pb.Receipt


@dataclass(frozen=True)
class GradientsAnswer:
    """The gradients of a turn: of its message (None for an Observe) and of the codec, by name."""

    message: Tensor | None
    codec: dict[str, Tensor]
    receipt: pb.Receipt


@dataclass(frozen=True)
class Talk:
    """What came of a conversation about one batch.

    Attributes:
        messages: m of each round, [B, K, M].
        replies: r of each round, [B, K, M].
        message_mask: [B, K], bool, the valid positions of messages and replies.
        decoded: S'_hi of the last round, of the shape of the states that were talked about.
        receipts: what the turns cost.
    """

    messages: tuple[Tensor, ...]
    replies: tuple[Tensor, ...]
    message_mask: Tensor
    decoded: Tensor
    receipts: tuple[pb.Receipt, ...]
