"""What may be done where a student spends most of its time waiting for its teacher."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from preceptor.compression import Compression, WireType
from student_client.times import StepTimes

if TYPE_CHECKING:
    from student_client.config import TalkConfig

__all__ = ["WaitingAdvice"]

_NUM_STEPS = 20
_MAX_SHARE = 0.5
_AGAIN = 2.0


class WaitingAdvice:
    """Watches the steps of a run; speaks once, and again if it gets twice as bad.

    Args:
        address: of the teacher.
        talk: how the student talks; what it does already is not advised.
        reads_ahead: whether the teacher reads the next batch ahead already.
        num_steps: how many of the last steps are looked at.
    """

    def __init__(
        self, address: str, talk: TalkConfig, *, reads_ahead: bool = True, num_steps: int = _NUM_STEPS
    ) -> None:
        self._address = address
        self._talk = talk
        self._reads_ahead = reads_ahead
        self._num_steps = num_steps
        self._laps: deque[StepTimes] = deque()
        self._told_s = 0.0  # seconds of waiting a step that were last complained of

    def after(self, lap: StepTimes) -> str | None:
        """Takes more steps in; returns a warning and what may help, if it is time for one."""
        self._laps.append(lap)
        while sum(each.num_steps for each in list(self._laps)[1:]) >= self._num_steps:
            self._laps.popleft()
        times = sum(self._laps, StepTimes())
        if times.num_steps < self._num_steps or times.waiting_share <= _MAX_SHARE:
            return None
        waiting_s = times.waiting.waiting_s / times.num_steps
        if self._told_s and waiting_s < _AGAIN * self._told_s:
            return None
        self._told_s = waiting_s
        return self._text(times)

    def _text(self, times: StepTimes) -> str:
        of_one = times.of_one()
        parts = {
            "queue": (of_one["queue_s"], self._of_queue),
            "wire": (of_one["wire_s"], self._of_wire),
            "teacher's computation": (of_one["teacher_s"], self._of_teacher),
        }
        name = max(parts, key=lambda part: parts[part][0])
        split = ", ".join(f"{part} {1000 * seconds:.0f} ms" for part, (seconds, _) in parts.items())
        return (
            f"{times.waiting_share:.0%} of the last {times.num_steps} steps was waiting for the teacher "
            f"({split}, of {1000 * of_one['step_s']:.0f} ms a step); most of it is the {name}: "
            f"{parts[name][1]()}"
        )

    def _of_queue(self) -> str:
        return (
            f"the teacher is busy; `preceptor status {self._address}` says with what; its operator may give "
            "this team a larger weight (preceptor tenant change --weight) or add replicas"
        )

    def _of_wire(self) -> str:
        talk, tips = self._talk, list[str]()
        if talk.compression != Compression.all(WireType.INT8):
            tips.append("compression int8 makes frames smaller")
        if talk.micro_batch_size is None:
            tips.append("micro_batch_size has a batch travel and be computed in parts at once")
        if not self._reads_ahead:
            tips.append("push_codec() and read_ahead() send what can go before it is needed")
        tips.append("a student in the teacher's region has a shorter way")
        return "; ".join(tips)

    def _of_teacher(self) -> str:
        talk = self._talk
        tips = ["shorter messages (codec.message_len) and smaller batches are less to compute"]
        if talk.num_rounds > 1:
            tips.append(f"each of the {talk.num_rounds} rounds costs as much again")
        if not self._reads_ahead:
            tips.append("read_ahead() has the next batch's inputs read in the meantime")
        return "; ".join(tips)
