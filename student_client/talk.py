"""TeacherTalk: a student's side of the conversation as an `nn.Module`.

Talking Models (arXiv 2310.03188): m = Enc_S(S_lo) goes to the teacher, which answers
r = Enc_T(upper(Dec_T(m))); S'_hi = Dec_S(r). All four encoders and decoders are parameters of this module,
also the two that run on the service. At inference none of this is needed.

On a narrow wire (`Compression`) rounding is passed straight through: the message's gradient is the one that
the teacher computed at the message as it arrived, and nothing is differentiated through the rounding.

Shapes: B batch, L positions of the student's sequence, D its width, K positions and M width of a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from preceptor.codec import CodecSpec, Decoder, Encoder, TeacherCodec
from preceptor.compression import Compression, WireType
from preceptor.terms import READING_NUMBERS, ObservationKind, Reading, parse
from preceptor.v1 import teacher_pb2 as pb
from student_client.client import TeacherClient
from student_client.pending import PendingObservation, PendingTalk
from student_client.sender import Sender
from student_client.turns import Talk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from student_client.client import ConversationHandle
    from student_client.frames import TeacherInputs
    from student_client.options import ClientOptions
    from student_client.pending import Answer

__all__ = ["MAX_FRAME_BYTES", "Talk", "TeacherTalk"]

MAX_FRAME_BYTES = 4 << 20  # larger batches travel in several turns


class TeacherTalk(nn.Module):
    """Talks with a teacher about hidden states; differentiable throughout.

    Args:
        client: the teacher.
        spec: what messages are like; both ends build their codec from it.
        student_dim: the width of the student's states.
        teacher_dim: the width of the teacher's.
        reading: how the teacher takes messages in; what is not `replace` needs inputs in each call.
        split_layer: the teacher's talking layer; None: its default.
        compression: the types in which messages, replies and gradients travel.
        deterministic: whether results must not depend, in their last bit, on who else is served; it costs
            the gain of sharing.
        tenant: the team that talks; the service shares its time fairly between teams.
        max_frame_bytes: larger turns are split by rows.
        micro_batch_size: rows of one turn at most, so that a batch is several turns in flight together.
        limits: what the teacher accepts, so that no batch is more turns than it keeps; None: not known.
    """

    def __init__(
        self,
        client: TeacherClient,
        spec: CodecSpec,
        *,
        student_dim: int,
        teacher_dim: int,
        reading: Reading | str = Reading.ADD,
        split_layer: int | None = None,
        compression: Compression | WireType | str = WireType.FLOAT32,
        deterministic: bool = False,
        tenant: str = "",
        max_frame_bytes: int = MAX_FRAME_BYTES,
        micro_batch_size: int | None = None,
        limits: pb.Limits | None = None,
    ) -> None:
        super().__init__()
        self.client = client
        self.spec, self.student_dim = spec, student_dim
        self.reading = parse(Reading, reading, "reading")
        self.compression = Compression.of(compression)
        self._sender = Sender(
            client,
            pb.Open(
                codec=spec.to_proto(),
                reading=READING_NUMBERS[self.reading],
                split_layer=split_layer,
                compression=self.compression.to_proto(),
                deterministic=deterministic,
                tenant=tenant,
            ),
            max_frame_bytes=max_frame_bytes,
            micro_batch_size=micro_batch_size,
            limits=limits,
        )
        self.student_encoder = Encoder(spec, student_dim)
        self.student_decoder = Decoder(spec, student_dim)
        self.teacher_codec = TeacherCodec(spec, teacher_dim)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        student_dim: int,
        message_dim: int,
        message_len: int | None = None,
        reading: Reading | str = Reading.ADD,
        split_layer: int | None = None,
        hidden_dim: int | None = None,
        compression: Compression | WireType | str = WireType.FLOAT32,
        deterministic: bool = False,
        tenant: str = "",
        micro_batch_size: int | None = None,
        options: ClientOptions | None = None,
    ) -> Self:
        """Asks the teacher what it is and builds the codec that fits.

        Args:
            address: for example `preceptor://127.0.0.1:41500`.
            student_dim: the width of the student's states.
            message_dim: the width of a message.
            message_len: positions of a message; None: as many as the student's sequence has.
            reading: as in the class.
            split_layer: the teacher's talking layer; None: its default.
            hidden_dim: width of a two-layer codec's middle; None: a linear codec.
            compression: the types on the wire; one name, for example "int8", means all three.
            deterministic: as in the class.
            tenant: as in the class.
            micro_batch_size: as in the class.
            options: deadlines and limits.

        Raises:
            ValueError: an argument is out of its range.
            TeacherError: the teacher does not answer.
        """
        spec = CodecSpec(
            kind="linear" if hidden_dim is None else "two_layer",
            message_dim=message_dim,
            message_len=message_len,
            hidden_dim=hidden_dim,
        )
        reading, compression = parse(Reading, reading, "reading"), Compression.of(compression)
        client = TeacherClient(address, options)
        description = client.describe()
        return cls(
            client,
            spec,
            student_dim=student_dim,
            teacher_dim=description.teacher.hidden_size,
            reading=reading,
            split_layer=split_layer,
            compression=compression,
            deterministic=deterministic,
            tenant=tenant,
            micro_batch_size=micro_batch_size,
            max_frame_bytes=min(MAX_FRAME_BYTES, description.limits.max_frame_bytes),
            limits=description.limits,
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
        return self.start(
            hidden_states,
            mask=mask,
            inputs=inputs,
            num_rounds=num_rounds,
            through_teacher=through_teacher,
        ).result()

    def start(
        self,
        hidden_states: Tensor,
        *,
        mask: Tensor | None = None,
        inputs: TeacherInputs | None = None,
        num_rounds: int = 1,
        through_teacher: bool = True,
    ) -> PendingTalk:
        """Sends the first round of a talk and returns at once; arguments and errors as in `forward`."""
        self._check(hidden_states, inputs, num_rounds)
        return PendingTalk(
            self,
            hidden_states,
            mask=mask,
            inputs=inputs,
            num_rounds=num_rounds,
            through_teacher=through_teacher,
        )

    def _check(self, hidden_states: Tensor, inputs: TeacherInputs | None, num_rounds: int) -> None:
        width, reading = hidden_states.shape[-1], self.reading.value
        if num_rounds < 1:
            raise ValueError(f"num_rounds: got {num_rounds}, expected at least 1")
        if width != self.student_dim:
            raise ValueError(f"hidden_states: got width {width}, expected student_dim {self.student_dim}")
        if inputs is None and self.reading is not Reading.REPLACE:
            expected = f"expected those of the rows for reading {reading!r}; 'replace' needs none"
            raise ValueError(f"inputs: got None, {expected}")

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
        return self.start_observe(inputs, kinds, message_mask=message_mask).result()

    def start_observe(
        self,
        inputs: TeacherInputs,
        kinds: Iterable[ObservationKind | str],
        *,
        message_mask: Tensor | None = None,
    ) -> PendingObservation:
        """Asks what the teacher sees and returns at once; arguments and errors as in `observe`."""
        return PendingObservation(self._sender.observe(self.teacher_codec, inputs, kinds, message_mask))

    def read_ahead(self, inputs: TeacherInputs, kinds: Iterable[ObservationKind | str] = ()) -> None:
        """Has the teacher read the next batch's inputs while it has nothing better to do.

        Returns at once. What goes wrong is dropped: the batch is then read when it is talked about.

        Args:
            inputs: texts or tensors by name.
            kinds: what will be observed of them; turns with the same inputs need no kind.
        """
        self._sender.read_ahead(inputs, kinds)

    def push_codec(self) -> None:
        """Sends the codec now, in the background, if it has changed since it was last sent.

        For use after `optimizer.step()`: it then travels during the student's next forward pass.
        """
        self._sender.push_codec(self.teacher_codec)

    def send_message(self, message: Tensor, mask: Tensor, inputs: TeacherInputs | None) -> Answer:
        """Sends a message [B, K, M] with its mask [B, K]; for `PendingTalk`."""
        return self._sender.exchange(self.teacher_codec, message, mask, inputs)

    @property
    def conversation(self) -> ConversationHandle:
        """This process's conversation with the teacher; a copy of this module has one of its own."""
        return self._sender.conversation

    @property
    def max_frame_bytes(self) -> int:
        """About how large a frame may be; larger turns are split by rows."""
        return self._sender.max_frame_bytes

    @max_frame_bytes.setter
    def max_frame_bytes(self, num_bytes: int) -> None:
        self._sender.max_frame_bytes = num_bytes

    def close(self) -> None:
        """Ends the conversation; the next turn starts another."""
        self._sender.close()
