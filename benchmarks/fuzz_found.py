"""What `benchmarks.fuzz` looks for."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from preceptor.v1 import teacher_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Found", "heard"]


@dataclass
class Found:
    """What came of the inputs."""

    inputs: collections.Counter[str] = field(default_factory=collections.Counter)
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    crashes: list[str] = field(default_factory=list)
    disturbed_turns: int = 0
    bystanders_turns: int = 0
    growth_mb: float = 0.0

    def take(self, answer: pb.ConverseResponse) -> None:
        """Counts why a frame was refused, if it was."""
        if answer.WhichOneof("frame") == "failed":
            self.reasons[pb.Reason.Name(answer.failed.reason)] += 1

    @property
    def num_unknown(self) -> int:
        """Refusals that say nothing, or that the service failed."""
        return self.reasons["REASON_UNSPECIFIED"] + self.reasons["REASON_INTERNAL"]


def heard(answers: Iterable[pb.ConverseResponse]) -> dict[tuple[str, int], bytes]:
    """Returns the numbers that were answered by turn, without the times of their receipts."""
    values = {}
    for answer in answers:
        if answer.HasField("reply"):
            content = answer.reply.reply.SerializeToString(deterministic=True)
            values["reply", answer.reply.turn] = content
        elif answer.HasField("gradients"):
            content = answer.gradients.message.SerializeToString(deterministic=True)
            values["gradients", answer.gradients.turn] = content
    return values
