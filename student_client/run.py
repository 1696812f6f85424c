"""One worker's part of a training run: steps, epochs, evaluation, state. Knows nothing of Ray."""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from student_client.data import load_splits
from student_client.objective import Objective, build_objective
from student_client.records import ResumeError
from student_client.students import build_student

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from student_client.config import OptimizerConfig, TrainConfig
    from student_client.data import Batch, Examples

__all__ = ["StudentRun"]


class StudentRun:
    """Trains a student; a run that is saved and loaded at the end of an epoch goes on exactly.

    Args:
        config: of the run.
        rank: this worker's number.
        world_size: workers.
        wrap: makes a module data parallel and puts it on this worker's device.
        clock: seconds that only grow.

    Attributes:
        epoch: epochs done.
        last_valid: the metric on the validation examples after the last epoch.
        last_waiting_share: the share of the last epoch's step time that was spent waiting for the teacher.
        metric: "accuracy" or "rmse".

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
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config
        self.metric = "rmse" if config.data.task == "regression" else "accuracy"
        self.epoch = 0
        self.last_valid = math.nan
        self.last_waiting_share = 0.0
        self.splits = load_splits(config.data, config.seed)
        self._rank = rank
        self._world_size = world_size
        self._clock = clock
        self._step_s = 0.0
        torch.manual_seed(config.seed)
        student = build_student(
            config.student, num_classes=len(self.splits.classes), python_path=config.python_path
        )
        example = self.splits.train.select(torch.arange(min(2, len(self.splits.train))))
        self.objective: Objective = build_objective(config, student, example)
        self._parallel = wrap(self.objective)
        self._device = next(self.objective.parameters()).device
        self._optimizer = _build_optimizer(self.objective, config.optimizer)
        self._schedule = _build_schedule(self._optimizer, config.optimizer, self.num_steps)
        self._best: tuple[float, int, dict[str, Tensor]] | None = None
        torch.manual_seed(config.seed * 1_000_003 + rank)  # dropout differs between workers

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        full, rest = divmod(len(self.splits.train), self.config.batch_size)
        return full + (rest >= self._world_size)

    def train_epoch(self) -> Iterator[dict[str, float]]:
        """Trains one epoch; yields the losses of each step by name, "loss" their weighted sum.

        Raises:
            TeacherError: the conversation failed; see `student_client.errors`.
        """
        self._parallel.train()
        batches = self.splits.train.shuffled(
            self.config.batch_size,
            seed=self.config.seed,
            epoch=self.epoch,
            rank=self._rank,
            world_size=self._world_size,
        )
        waited_s, stepped_s = self._waiting_s, self._step_s
        for batch, ahead in itertools.pairwise(itertools.chain(batches, [None])):
            if batch is not None:  # None is only ahead of the last one
                yield self._step(batch.to(self._device), ahead)
        self.last_waiting_share = _share(self._waiting_s - waited_s, self._step_s - stepped_s)
        self.epoch += 1
        self._keep_best()

    def _step(self, batch: Batch, ahead: Batch | None) -> dict[str, float]:
        start_s = self._clock()
        outcome = self._parallel(batch, ahead)
        self._optimizer.zero_grad()
        outcome.loss.backward()
        if self.config.optimizer.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.optimizer.max_grad_norm)
        self._optimizer.step()
        if self.objective.talk is not None:
            self.objective.talk.push_codec()
        self._schedule.step()
        losses = {"loss": outcome.loss.item(), **{name: part.item() for name, part in outcome.parts.items()}}
        self._step_s += self._clock() - start_s
        return losses

    def _keep_best(self) -> None:
        self.last_valid = value = self.evaluate(self.splits.valid)
        score = -value if self.metric == "rmse" else value
        if self.config.keep == "last" or self._best is None or score > self._best[0]:
            state = {name: tensor.clone() for name, tensor in self.objective.student.state_dict().items()}
            self._best = (score, self.epoch, state)

    @torch.no_grad()
    def evaluate(self, examples: Examples, batch_size: int = 512) -> float:
        """Returns the student's accuracy (0 to 1) or root mean squared error; it is alone."""
        self.objective.eval()
        total = 0.0
        for batch in examples.batches(batch_size):
            moved = batch.to(self._device)
            logits = self.objective.predict(moved)
            if self.metric == "rmse":
                total += (logits.reshape(moved.labels.shape) - moved.labels).pow(2).sum().item()
            else:
                total += (logits.argmax(-1) == moved.labels).sum().item()
        mean = total / len(examples)
        return math.sqrt(mean) if self.metric == "rmse" else mean

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
            "num_train": len(self.splits.train),
            "num_test": len(self.splits.test),
            **self.conversation_facts(),
        }

    def conversation_facts(self) -> dict[str, float]:
        """Returns how long the student waited for its teacher and how often it had to reconnect."""
        talk = self.objective.talk
        return {
            "waiting_s": self._waiting_s,
            "waiting_share": _share(self._waiting_s, self._step_s),
            "num_reconnects": 0 if talk is None else talk.conversation.num_reconnects,
        }

    @property
    def _waiting_s(self) -> float:
        talk = self.objective.talk
        return 0.0 if talk is None else talk.conversation.waiting_s

    def save_student(self, path: Path) -> None:
        """Writes the student alone, as safetensors."""
        aside = path.with_suffix(".part")
        save_model(self.objective.student, str(aside))
        aside.replace(path)

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
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "epoch": self.epoch,
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
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.epoch = state["epoch"]
        self._best = state["best"]


def _share(part_s: float, whole_s: float) -> float:
    return part_s / whole_s if whole_s else 0.0


def _build_optimizer(objective: Objective, config: OptimizerConfig) -> torch.optim.AdamW:
    codec = [] if objective.talk is None else [p for p in objective.talk.parameters() if p.requires_grad]
    codec_ids = {id(parameter) for parameter in codec}
    own = [p for p in objective.parameters() if p.requires_grad and id(p) not in codec_ids]
    groups: list[dict[str, Any]] = [{"params": own}]
    if codec:
        groups.append({"params": codec, "lr": config.codec_lr or config.lr})
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)


def _build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        done = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
