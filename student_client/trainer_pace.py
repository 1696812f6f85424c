"""Where the time of a `TalkingTrainer`'s steps goes, for its logs; and the codec's way to the teacher."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from student_client.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from student_client.advice import WaitingAdvice
    from student_client.talk import TeacherTalk

__all__ = ["TalkingCallback"]

logger = logging.getLogger(__name__)


class TalkingCallback(TrainerCallback):  # type: ignore[misc]
    """Counts the time of steps, and sends the codec while the model goes on.

    Args:
        talk: the conversation.
        advice: what is said where most of the time is spent waiting.
    """

    def __init__(self, talk: TeacherTalk, advice: WaitingAdvice) -> None:
        self._talk = talk
        self._advice = advice
        self._pace = Pace(lambda: talk.conversation.times)
        self._step = contextlib.ExitStack()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Forgets the step in which an earlier training broke off."""
        self._step = contextlib.ExitStack()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begins a step, with all of its parts."""
        self._step.enter_context(self._pace.step(1))

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Sends the codec."""
        self._talk.push_codec()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Ends it."""
        self._step.close()

    def logs(self, mean: Callable[[float], float]) -> dict[str, float]:
        """Returns the mean step since it was last asked for, seconds by part; nothing without any.

        Args:
            mean: takes a number to its mean over all processes, which all ask for the same.
        """
        times = self._pace.lap()[1].averaged(mean)
        if not times.num_steps:
            return {}
        advice = self._advice.after(times)
        if advice is not None:
            logger.warning("%s", advice)
        return {**times.of_one(), "waiting_share": times.waiting_share}
