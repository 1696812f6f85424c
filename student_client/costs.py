"""What a conversation has cost so far: turns, positions, computation, bytes in both directions.

Counted where frames leave and arrive, on the event loop that writes and reads them; read from anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preceptor.v1 import teacher_pb2 as pb
    from student_client.client import ConversationHandle

__all__ = ["Costs", "cost_facts"]

_MS = 1000.0


class Costs:
    """Adds up frames and the receipts in them.

    Attributes:
        num_turns: answers: of exchanges, observations and gradients.
        num_tokens: positions that the teacher was asked about, also those that it had in its cache.
        compute_s: seconds that the teacher computed; of what it computed for several at once, an equal part.
        bytes_sent: of all frames, codecs included.
        bytes_received: of all frames.
    """

    def __init__(self) -> None:
        self.num_turns = 0
        self.num_tokens = 0
        self.compute_s = 0.0
        self.bytes_sent = 0
        self.bytes_received = 0

    def sent(self, frame: pb.ConverseRequest) -> None:
        """Counts a frame that was written."""
        self.bytes_sent += frame.ByteSize()

    def received(self, answer: pb.ConverseResponse) -> None:
        """Counts a frame that came."""
        self.bytes_received += answer.ByteSize()
        kind = answer.WhichOneof("frame")
        if kind not in ("reply", "observation", "gradients"):
            return
        if kind == "gradients" and not answer.gradients.complete:
            return  # the last part has the receipt
        receipt: pb.Receipt = getattr(answer, kind).receipt
        self.num_turns += 1
        self.num_tokens += receipt.tokens
        self.compute_s += receipt.compute_ms / _MS / max(receipt.num_conversations, 1)


def cost_facts(conversation: ConversationHandle) -> dict[str, float]:
    """Returns what a conversation has cost, by the names of `Costs`, and `waiting_s`, seconds waited."""
    return {**vars(conversation.costs), "waiting_s": conversation.waiting_s}
