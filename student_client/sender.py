"""Puts what a student says into turns and sends them, in the conversation of this process.

Shapes: B batch, K positions and M width of a message.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch

from preceptor.compression import Compression
from preceptor.terms import ObservationKind
from preceptor.v1 import teacher_pb2 as pb
from student_client.frames import exchange_frames, num_rows, observe_frames
from student_client.pending import SentTurns
from student_client.turns import CodecVersions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

    from student_client.client import ConversationHandle, TeacherClient
    from student_client.frames import TeacherInputs

__all__ = ["Sender"]

logger = logging.getLogger(__name__)


class Sender:
    """Sends turns; a copy of it, also in another process, has a conversation of its own.

    Args:
        client: the teacher.
        open_frame: what is agreed with it.
        max_frame_bytes: about how large a frame may be; larger turns are split by rows.
        micro_batch_size: rows of a turn at most, or None; more where a batch would otherwise be more turns
            than the teacher keeps for their gradients.
        limits: what the teacher accepts, or None if it was not asked.

    Attributes:
        max_frame_bytes: as given.
    """

    def __init__(
        self,
        client: TeacherClient,
        open_frame: pb.Open,
        *,
        max_frame_bytes: int,
        micro_batch_size: int | None,
        limits: pb.Limits | None = None,
    ) -> None:
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(f"micro_batch_size: got {micro_batch_size}, expected at least 1, or None")
        self._client = client
        self._open_frame = open_frame
        self.max_frame_bytes = max_frame_bytes
        self._micro_batch_size = micro_batch_size
        self._limits = limits
        self._versions = CodecVersions()
        self._handle: ConversationHandle | None = None

    @property
    def conversation(self) -> ConversationHandle:
        """This process's conversation with the teacher."""
        if self._handle is None:
            self._handle = self._client.converse(self._open_frame)
        return self._handle

    def exchange(
        self, codec: nn.Module, message: Tensor, mask: Tensor, inputs: TeacherInputs | None
    ) -> SentTurns:
        """Sends a message, in several turns if it is large.

        Args:
            codec: the teacher's side of it.
            message: [B, K, M].
            mask: [B, K], bool.
            inputs: of the same B rows; left out where the teacher does not read them.

        Raises:
            ValueError: there are no rows, or they do not match.
        """
        wants_gradient = _wants_gradient(message, *codec.parameters())
        frames = exchange_frames(
            message,
            mask,
            None if self._open_frame.reading == pb.READING_REPLACE else inputs,
            wire_type=Compression.from_proto(self._open_frame.compression).message,
            wants_gradient=wants_gradient,
            max_bytes=self.max_frame_bytes,
            max_rows=self._max_rows(message.shape[0], wants_gradient=wants_gradient),
        )
        return self._send(codec, frames, wants_gradient=wants_gradient)

    def observe(
        self,
        codec: nn.Module,
        inputs: TeacherInputs,
        kinds: Iterable[ObservationKind | str],
        message_mask: Tensor | None,
    ) -> SentTurns:
        """Asks what the teacher sees in an input, in several turns if it is large.

        Args:
            codec: the teacher's side of it.
            inputs: texts or tensors by name.
            kinds: what to return.
            message_mask: [B, K], bool, or None.

        Raises:
            ValueError: there are no rows, or a kind is unknown.
        """
        wanted = frozenset(_known(kind) for kind in kinds)
        needs_codec = any(kind.needs_codec for kind in wanted)
        wants_gradient = needs_codec and _wants_gradient(*codec.parameters())
        frames = observe_frames(
            inputs,
            kinds=wanted,
            message_mask=message_mask,
            wants_gradient=wants_gradient,
            max_bytes=self.max_frame_bytes,
            max_rows=self._max_rows(num_rows(inputs), wants_gradient=wants_gradient),
        )
        return self._send(codec, list(frames), wants_gradient=wants_gradient, needs_codec=needs_codec)

    def read_ahead(self, inputs: TeacherInputs, kinds: Iterable[ObservationKind | str]) -> None:
        """Has inputs read that will be talked about or observed later; see `TeacherTalk.read_ahead`.

        Raises:
            ValueError: a kind is unknown.
        """
        wanted = frozenset(_known(kind) for kind in kinds)
        if not wanted and self._open_frame.reading == pb.READING_REPLACE:
            return  # the teacher will not read them at all
        frames = observe_frames(
            inputs,
            kinds=wanted or {ObservationKind.LOWER_STATE},
            message_mask=None,
            wants_gradient=False,
            max_bytes=self.max_frame_bytes,
            max_rows=self._micro_batch_size,
            ahead=True,
        )
        try:
            self.conversation.read_ahead(list(frames))
        except (TypeError, ValueError) as error:  # of the inputs; it is raised when they are talked about
            logger.debug("a batch was not read ahead: %s", error)

    def push_codec(self, codec: nn.Module) -> None:
        """Sends the codec in the background, if it has changed; see `TeacherTalk.push_codec`."""
        if self._handle is not None:
            self._handle.push_codec(self._versions.current(dict(codec.named_parameters())))

    def close(self) -> None:
        """Ends the conversation; the next turn starts another."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __getstate__(self) -> dict[str, object]:
        """Leaves the connection behind."""
        return {**self.__dict__, "_handle": None, "_versions": CodecVersions()}

    def _max_rows(self, batch: int, *, wants_gradient: bool) -> int | None:
        """Returns the rows of a turn at most; None: as many as fit.

        A turn that the teacher dropped before its gradients came would have to be sent again. Half of those
        that it keeps are for one batch, so that its observation or next round has room too.
        """
        size, limits = self._micro_batch_size, self._limits
        if size is None or limits is None or not wants_gradient:
            return size
        rows = math.ceil(batch / max(limits.max_retained_turns // 2, 1))
        return max(size, min(rows, limits.max_batch_size))

    def _send(
        self,
        codec: nn.Module,
        frames: Sequence[pb.Exchange | pb.Observe],
        *,
        wants_gradient: bool,
        needs_codec: bool = True,
    ) -> SentTurns:
        parameters = dict(codec.named_parameters())
        version = self._versions.current(parameters) if needs_codec else None
        turns = [self.conversation.send(frame, version) for frame in frames]
        return SentTurns(turns, wants_gradient, parameters, next(iter(parameters.values())).device)


def _known(kind: ObservationKind | str) -> ObservationKind:
    try:
        return ObservationKind(kind)
    except ValueError:
        known = ", ".join(ObservationKind)
        raise ValueError(f"kinds: got {kind!r}, expected some of {known}") from None


def _wants_gradient(*leaves: Tensor) -> bool:
    """Whether gradients of a turn may be asked for."""
    return torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
