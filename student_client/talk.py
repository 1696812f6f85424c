"""TeacherTalk: a student's side of the conversation as an `nn.Module`.

Talking Models (arXiv 2310.03188): m = Enc_S(S_lo) goes to the teacher, which answers
r = Enc_T(upper(Dec_T(m))); S'_hi = Dec_S(r). All four encoders and decoders are parameters of this module,
also the two that run on the service. At inference none of this is needed.

Shapes: B batch, L positions of the student's sequence, D its width, K positions and M width of a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from preceptor import wire
from preceptor.codec import CodecSpec, Decoder, Encoder, TeacherCodec, resample
from preceptor.terms import READING_NUMBERS, ObservationKind, Reading
from preceptor.v1 import teacher_pb2 as pb
from student_client.client import ConversationHandle, TeacherClient
from student_client.frames import TeacherInputs, exchange_frames, join_rows, observe_frames
from student_client.remote import differentiable, receive
from student_client.turns import CodecVersions, Talk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from student_client.client import PendingTurn
    from student_client.options import ClientOptions

__all__ = ["MAX_FRAME_BYTES", "Talk", "TeacherTalk"]

MAX_FRAME_BYTES = 4 << 20  # larger batches travel in several turns


class TeacherTalk(nn.Module):
    """Talks with a teacher about hidden states; differentiable throughout.

    Args:
        client: the teacher.
        spec: what messages are like; both ends build their codec from it.
        student_dim: the width of the student's states.
        teacher_dim: the width of the teacher's.
        reading: how the teacher takes messages in.
        split_layer: the teacher's talking layer; None: its default.
        wire_dtype: the floating-point type of messages and replies on the wire.
        max_frame_bytes: larger turns are split by rows.
    """

    def __init__(
        self,
        client: TeacherClient,
        spec: CodecSpec,
        *,
        student_dim: int,
        teacher_dim: int,
        reading: Reading | str = Reading.REPLACE,
        split_layer: int | None = None,
        wire_dtype: torch.dtype = torch.float32,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        super().__init__()
        self.client = client
        self.spec = spec
        self.student_dim = student_dim
        self.reading = Reading(reading)
        self.split_layer = split_layer
        self.wire_dtype = wire_dtype
        self.max_frame_bytes = max_frame_bytes
        self.student_encoder = Encoder(spec, student_dim)
        self.student_decoder = Decoder(spec, student_dim)
        self.teacher_codec = TeacherCodec(spec, teacher_dim)
        self._versions = CodecVersions()
        self._handle: ConversationHandle | None = None

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        student_dim: int,
        message_dim: int,
        message_len: int | None = None,
        reading: Reading | str = Reading.REPLACE,
        split_layer: int | None = None,
        hidden_dim: int | None = None,
        wire_dtype: torch.dtype = torch.float32,
        options: ClientOptions | None = None,
    ) -> Self:
        """Asks the teacher what it is and builds the codec that fits.

        Args:
            address: for example `preceptor://127.0.0.1:41500`.
            student_dim: the width of the student's states.
            message_dim: the width of a message.
            message_len: positions of a message; None: as many as the student's sequence has.
            reading: how the teacher takes messages in.
            split_layer: the teacher's talking layer; None: its default.
            hidden_dim: width of a two-layer codec's middle; None: a linear codec.
            wire_dtype: the floating-point type on the wire.
            options: deadlines and limits.

        Raises:
            ValueError: an argument is out of its range.
            TeacherError: the teacher does not answer.
        """
        client = TeacherClient(address, options)
        description = client.describe()
        spec = CodecSpec(
            kind="linear" if hidden_dim is None else "two_layer",
            message_dim=message_dim,
            message_len=message_len,
            hidden_dim=hidden_dim,
        )
        return cls(
            client,
            spec,
            student_dim=student_dim,
            teacher_dim=description.teacher.hidden_size,
            reading=reading,
            split_layer=split_layer,
            wire_dtype=wire_dtype,
            max_frame_bytes=min(MAX_FRAME_BYTES, description.limits.max_frame_bytes),
        )

    def forward(
        self,
        hidden_states: Tensor,
        *,
        mask: Tensor | None = None,
        inputs: TeacherInputs | None = None,
        num_rounds: int = 1,
        through_teacher: bool = True,
    ) -> Talk:
        """Talks about a batch of states.

        Args:
            hidden_states: [B, L, D], or [B, D] for a student without positions.
            mask: [B, L], bool, the valid positions; None: all.
            inputs: what the teacher itself reads of the same rows, texts or tensors by name; needed by
                `beside` and `add`.
            num_rounds: round k + 1 sends Enc_S(S'_hi) of round k.
            through_teacher: whether gradients flow through the teacher; if not, they stop at the reply.

        Raises:
            ValueError: an argument does not fit the others.
            TeacherError: see `student_client.errors`.
        """
        self._check(hidden_states, inputs, num_rounds)
        states = hidden_states[:, None] if hidden_states.ndim == 2 else hidden_states  # noqa: PLR2004 - rank
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        mask = mask.bool()
        message_mask = self.message_mask(mask)
        messages, replies, receipts = [], [], []
        for _ in range(num_rounds):
            messages.append(self.student_encoder(states, mask, message_mask))
            with torch.set_grad_enabled(torch.is_grad_enabled() and through_teacher):
                reply, receipt = self._exchange(messages[-1], message_mask, inputs)
            replies.append(reply)
            receipts.extend(receipt)
            states = resample(self.student_decoder(reply), message_mask, mask)
        return Talk(
            tuple(messages),
            tuple(replies),
            message_mask,
            states.reshape(hidden_states.shape),
            tuple(receipts),
        )

    def _check(self, hidden_states: Tensor, inputs: TeacherInputs | None, num_rounds: int) -> None:
        width, reading = hidden_states.shape[-1], self.reading.value
        if num_rounds < 1:
            raise ValueError(f"num_rounds: got {num_rounds}, expected at least 1")
        if width != self.student_dim:
            raise ValueError(f"hidden_states: got width {width}, expected student_dim {self.student_dim}")
        if inputs is None and self.reading is not Reading.REPLACE:
            raise ValueError(f"inputs: got None, expected those of the rows for reading {reading!r}")

    def message_mask(self, mask: Tensor) -> Tensor:
        """Returns the positions of a message about a sequence with the given ones, [B, L] -> [B, K]."""
        if self.spec.message_len is None:
            return mask
        return torch.ones(mask.shape[0], self.spec.message_len, dtype=torch.bool, device=mask.device)

    def observe(
        self,
        inputs: TeacherInputs,
        kinds: Iterable[ObservationKind | str],
        *,
        message_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Asks what the teacher itself sees in an input.

        Args:
            inputs: texts or tensors by name.
            kinds: what to return.
            message_mask: [B, K], bool, the positions that messages shall have; None: the teacher's own, or
                the codec's fixed ones.

        Returns:
            Values by kind; messages and state consistency are differentiable in the codec.

        Raises:
            TeacherError: see `student_client.errors`.
        """
        wanted = frozenset(ObservationKind(kind) for kind in kinds)
        parameters = self._codec_parameters()
        needs_codec = any(kind.needs_codec for kind in wanted)
        wants_gradient = needs_codec and self._wants_gradient()
        frames = observe_frames(
            inputs,
            kinds=wanted,
            message_mask=message_mask,
            wants_gradient=wants_gradient,
            max_bytes=self.max_frame_bytes,
        )
        pending = [self._send(frame, needs_codec=needs_codec) for frame in frames]
        device = next(self.parameters()).device
        parts = [
            differentiable(turn, None, parameters)[0] if wants_gradient else receive(turn, device)[0]
            for turn in pending
        ]
        return {name: join_rows([part[name] for part in parts]) for name in parts[0]}

    def _exchange(
        self, message: Tensor, mask: Tensor, inputs: TeacherInputs | None
    ) -> tuple[Tensor, list[pb.Receipt]]:
        """Sends a message, in several turns if it is large, and returns the reply."""
        parameters = self._codec_parameters()
        wants_gradient = self._wants_gradient(message)
        frames, rows = exchange_frames(
            message,
            mask,
            None if self.reading is Reading.REPLACE else inputs,
            dtype=self.wire_dtype,
            wants_gradient=wants_gradient,
            max_bytes=self.max_frame_bytes,
        )
        pending = [self._send(frame, needs_codec=True) for frame in frames]
        replies, receipts = [], []
        for turn, part in zip(pending, torch.split(message, rows), strict=True):
            if wants_gradient:
                values, receipt = differentiable(turn, part, parameters)
            else:
                values, receipt = receive(turn, message.device)
            replies.append(values["reply"].to(message.dtype))
            receipts.append(receipt)
        return torch.cat(replies) if len(replies) > 1 else replies[0], receipts

    def _send(self, frame: pb.Exchange | pb.Observe, *, needs_codec: bool) -> PendingTurn:
        return self.conversation.send(
            frame, self._versions.current(self._codec_parameters()) if needs_codec else None
        )

    @property
    def conversation(self) -> ConversationHandle:
        """This process's conversation with the teacher."""
        if self._handle is None:
            self._handle = self.client.converse(
                pb.Open(
                    codec=self.spec.to_proto(),
                    reading=READING_NUMBERS[self.reading],
                    split_layer=self.split_layer,
                    wire_data_type=wire.from_torch_dtype(self.wire_dtype),
                )
            )
        return self._handle

    def _wants_gradient(self, *message: Tensor) -> bool:
        """Whether gradients of a turn may be asked for."""
        leaves = (*message, *self.teacher_codec.parameters())
        return torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)

    def _codec_parameters(self) -> dict[str, Tensor]:
        return dict(self.teacher_codec.named_parameters())

    def close(self) -> None:
        """Ends the conversation; the next turn starts another."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __getstate__(self) -> dict[str, object]:
        """Leaves the connection behind: a copy, also in another process, opens its own."""
        return {**self.__dict__, "_handle": None, "_versions": CodecVersions()}
