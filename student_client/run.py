"""One worker's part of a training run: steps, epochs, evaluation, state. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from student_client import tracing
from student_client.activity import Activity
from student_client.building import build
from student_client.checkpoints import ResumeError
from student_client.data import check_enough, load_splits
from student_client.evaluation import evaluate
from student_client.objective import StepSize, num_tokens
from student_client.optimization import build_optimizer, build_schedule
from student_client.pace import Pace
from student_client.times import WaitingTimes
from student_client.whole_files import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from student_client.config import TrainConfig
    from student_client.data import Batch, ExampleSource
    from student_client.objective import Outcome
    from student_client.times import StepTimes
    from student_client.told_file import ToldFile

__all__ = ["StudentRun"]


class StudentRun:
    """Trains a student; a run that is saved and loaded goes on exactly.

    A step's loss is the mean over the rows (labels, for the task) of all workers and parts of the batch, so
    neither `num_workers` nor `accumulate` changes what is learnt.

    Args:
        config: of the run.
        rank: this worker's number.
        world_size: workers.
        wrap: makes a module data parallel and puts it on this worker's device.
        sum_over_workers: adds a number up over all workers.
        patience_s: seconds to go on asking a teacher that does not answer at first.
        clock: seconds that only grow.
        activity: is told of what takes a while, for people who watch.
        keep: where what examples are told is found if it was found out before.

    Attributes:
        epoch: epochs done.
        step: steps done.
        last_valid: the metric on the validation examples after the last epoch.
        metric: "accuracy" or "rmse".
        pace: how fast it goes and how long it waits.

    Raises:
        DataError, ValueError: the config does not fit the data or the student.
        TeacherError: the teacher does not say what it is.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        sum_over_workers: Callable[[float], float] = lambda number: number,
        patience_s: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
        activity: Activity | None = None,
        keep: ToldFile | None = None,
    ) -> None:
        self.config = config
        self.metric = "rmse" if config.data.task == "regression" else "accuracy"
        self.epoch = 0
        self.last_valid = math.nan
        self._activity = activity or Activity()
        with self._activity.now("reading data"):
            self.splits = load_splits(config.data, config.student)
            check_enough(len(self.splits.train), world_size)
            self.example = self.splits.train.example()
        self._rank, self._world_size = rank, world_size
        self._sum_over_workers = sum_over_workers
        self._batches_done = 0  # of the epoch that is under way
        torch.manual_seed(config.seed)
        self.objective, self.splits, self._told_by = build(
            config, self.splits, self.example, patience_s, self._activity, keep
        )
        self.pace = Pace(lambda: self._waiting, clock, lambda number: sum_over_workers(number) / world_size)
        self._parallel = wrap(self.objective)
        self._device = next(self.objective.parameters()).device
        self._optimizer = build_optimizer(self.objective, config.optimizer)
        self._schedule = build_schedule(self._optimizer, config.optimizer, self.num_steps)
        self._best: tuple[float, int, dict[str, Tensor]] | None = None
        torch.manual_seed(config.seed * 1_000_003 + rank)  # dropout differs between workers

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, however many workers share them: checkpoints are found by their steps."""
        return math.ceil(len(self.splits.train) / self.config.batch_size)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.epoch * self.steps_per_epoch + self._batches_done

    def train_epoch(self) -> Iterator[dict[str, float]]:
        """Trains one epoch, or what is left of it; yields the losses of each step by name.

        "loss" is their weighted sum.

        Raises:
            TeacherError: the conversation failed; see `student_client.errors`.
            DivergedError: a loss is not finite.
        """
        self._parallel.train()
        self.pace.start_epoch()
        batches = self.splits.train.shuffled(
            self.config.batch_size,
            seed=self.config.seed,
            epoch=self.epoch,
            rank=self._rank,
            world_size=self._world_size,
            first_batch=self._batches_done,
        )
        batches = self._activity.over("reading data", batches)
        for batch, ahead in itertools.pairwise(itertools.chain(batches, [None])):
            if batch is not None:  # None is only ahead of the last one
                losses = self._step(batch, ahead)
                self._batches_done += 1
                yield losses
        self.epoch += 1
        self._batches_done = 0
        self._keep_best()

    def _step(self, batch: Batch, ahead: Batch | None) -> dict[str, float]:
        total = self._global_size(batch)
        with tracing.step(self.step), self.pace.step(total.rows):
            parts = batch.parts(self.config.accumulate)
            self._optimizer.zero_grad()
            sums: dict[str, float] = {}
            num_labels = max(num_tokens(batch.labels), 1)
            for number, (part, following) in enumerate(itertools.pairwise([*parts, ahead])):
                assert part is not None  # noqa: S101 - only the last one can be
                is_last = number == len(parts) - 1
                with contextlib.nullcontext() if is_last else self._without_averaging():
                    outcome = self._backward(part, following, total)
                shares = outcome.num_tokens / num_labels, len(part.labels) / len(batch.labels)
                losses = outcome.losses(*shares) if len(parts) > 1 else outcome.losses()
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value
            if self.config.optimizer.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.optimizer.max_grad_norm)
            self._optimizer.step()
            if self.objective.talk is not None:
                self.objective.talk.push_codec()
            self._schedule.step()
        return sums

    def _backward(self, part: Batch, ahead: Batch | None, total: StepSize) -> Outcome:
        """Adds a part's gradients; all parts' sum is the gradient of the mean over all workers."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            outcome: Outcome = self._parallel(part.to(self._device), ahead)
        of_task = outcome.num_tokens * self._world_size / total.tokens
        of_rows = len(part.labels) * self._world_size / total.rows
        if self._rank >= total.rows:  # its row is another's
            of_task = of_rows = 0.0
        if of_task == of_rows == 1:
            torch.autograd.backward(outcome.loss)  # exactly as it is
        else:
            torch.autograd.backward(of_task * outcome.task_loss + of_rows * outcome.talk_loss)
        return outcome

    def _without_averaging(self) -> contextlib.AbstractContextManager[None]:
        """Lets gradients add up in this worker while open; they are averaged with the last part."""
        no_sync: Callable[[], contextlib.AbstractContextManager[None]] = getattr(
            self._parallel, "no_sync", contextlib.nullcontext
        )
        return no_sync()

    def _global_size(self, batch: Batch) -> StepSize:
        """Returns the size of this step's batch in all workers."""
        left = len(self.splits.train) - self._batches_done * self.config.batch_size
        rows = min(self.config.batch_size, left)
        if self.config.data.task != "tokens" and self.config.data.unlabelled is None:
            return StepSize(rows, rows)
        own = num_tokens(batch.labels) if self._rank < rows else 0
        return StepSize(rows, max(self._sum_over_workers(own), 1))

    def _keep_best(self) -> None:
        self.last_valid = value = self.evaluate(self.splits.valid)
        score = -value if self.metric == "rmse" else value
        if self.config.keep == "last" or self._best is None or not score <= self._best[0]:
            state = {name: tensor.clone() for name, tensor in self.objective.student.state_dict().items()}
            self._best = (score, self.epoch, state)

    def evaluate(self, examples: ExampleSource) -> float:
        """Returns the student's accuracy (0 to 1) or root mean squared error; it is alone."""
        with self._activity.now("evaluating the student"):
            return evaluate(self.objective, examples, self.metric, self._device)

    def finish(self) -> dict[str, Any]:
        """Gives the student the weights that are the result and returns what they are worth."""
        best_epoch = self.epoch
        if self._best is not None:
            _, best_epoch, state = self._best
            self.objective.student.load_state_dict(state)
        return {
            "metric": self.metric,
            "valid": self.evaluate(self.splits.valid),
            "test": self.evaluate(self.splits.test),
            "epochs": self.epoch,
            "best_epoch": best_epoch,
            "num_steps": self.step,
            "num_train": len(self.splits.train),
            **({"num_unlabelled": self.splits.num_unlabelled} if self.splits.num_unlabelled else {}),
            "num_test": len(self.splits.test),
            **self._told_by,
            **self.conversation_facts(self.pace.all_steps()),
        }

    def conversation_facts(self, times: StepTimes) -> dict[str, Any]:
        """Returns how long the student waited, in some steps and ever, and how often it had to reconnect."""
        talk = self.objective.talk
        return {
            "waiting_s": self._waiting.waiting_s,
            "waiting_share": times.waiting_share,
            "step_times": times.of_one(),
            "num_reconnects": 0 if talk is None else talk.conversation.num_reconnects,
        }

    @property
    def _waiting(self) -> WaitingTimes:
        talk = self.objective.talk
        return WaitingTimes() if talk is None else talk.conversation.times

    def save_student(self, path: Path) -> None:
        """Writes the student alone, as safetensors."""
        with whole_file(path) as aside:
            save_model(self.objective.student, str(aside))

    def close(self) -> None:
        """Ends the conversation."""
        if self.objective.talk is not None:
            self.objective.talk.close()

    def state(self) -> dict[str, Any]:
        """Returns all that a resumed run needs: student, codec, optimizer, schedule, RNG, progress."""
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
            "epoch": self.epoch,
            "batches_done": self._batches_done,
            "last_valid": self.last_valid,
            "best": self._best,
            "teacher": self.objective.teacher_fingerprint,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` returned.

        Raises:
            ResumeError: it was trained against another teacher.
        """
        if state["teacher"] != self.objective.teacher_fingerprint:
            raise ResumeError("the run's checkpoints were made with another teacher; start it fresh")
        self.objective.load_state_dict(state["objective"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if state["rng"] is not None:  # a worker that was not there before has its own seed
            torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self._device)
        self.epoch = state["epoch"]
        self._batches_done = state["batches_done"]
        self.last_valid = state["last_valid"]
        self._best = state["best"]
