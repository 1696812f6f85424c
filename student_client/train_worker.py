"""What each of Ray Train's workers does: a `StudentRun`, its checkpoints, and the files of its folder."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import torch
from ray import train as ray_train
from ray.train.torch import prepare_model
from safetensors.torch import save_file

from student_client.activity import Activity, told_in
from student_client.advice import WaitingAdvice
from student_client.checkpoints import Checkpoints
from student_client.config import TrainConfig
from student_client.plots import draw_losses, draw_waiting
from student_client.records import (
    EXAMPLE_FILE,
    METRICS_FILE,
    RESULT_FILE,
    STUDENT_FACTS_FILE,
    STUDENT_FILE,
    MetricsFile,
    config_digest,
    read_metrics,
)
from student_client.run import StudentRun
from student_client.told_file import ToldFile
from student_client.tracing import traces_to
from student_client.tracking import Tracker
from student_client.whole_files import whole_file, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from student_client.times import StepTimes

__all__ = ["train_worker"]

logger = logging.getLogger(__name__)


def train_worker(loop_config: dict[str, Any]) -> None:
    """Runs on each of Ray Train's workers; `loop_config` holds the run's config as JSON under "config"."""
    config = TrainConfig.model_validate_json(loop_config["config"])
    context = ray_train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.num_threads)
    activity = Activity()
    with (
        traces_to(config.tracking.traces, run=config.name, worker=str(rank)),
        told_in(config.folder, rank, lambda: activity.latest),
    ):
        _train_worker(config, rank, world_size, activity)


def _train_worker(config: TrainConfig, rank: int, world_size: int, activity: Activity) -> None:
    run = StudentRun(
        config,
        rank=rank,
        world_size=world_size,
        # A codec half that this step's losses leave out gets no gradient.
        wrap=lambda module: prepare_model(module, parallel_strategy_kwargs={"find_unused_parameters": True}),
        # It answered when the run was started, so if it is away now it is expected back.
        patience_s=config.teacher.options.deadline_s if config.teacher else 0.0,
        sum_over_workers=_sum_over_workers if world_size > 1 else float,
        activity=activity,
        keep=ToldFile(config, rank, activity),
    )
    if run.objective.talk is not None:
        conversation = run.objective.talk.conversation
        activity.otherwise = lambda: conversation.waits_for
    try:
        checkpoints = Checkpoints(config.folder, config_digest(config), rank=rank, world_size=world_size)
        state = checkpoints.load()
        if state is not None:
            run.load_state(state)
        watch = _Watch(run, checkpoints.passed_over) if rank == 0 else None
        try:
            _train(run, watch, checkpoints, activity)
        except BaseException as error:
            if watch is not None:
                watch.fail(error)
            raise
    finally:
        run.close()


def _sum_over_workers(number: float) -> float:
    total = torch.tensor(number, dtype=torch.float64, device=ray_train.torch.get_device())
    torch.distributed.all_reduce(total)
    return float(total)


class _Watch:
    """Tells of a run while it goes: its `metrics.jsonl` and whatever else follows it; the first worker's."""

    def __init__(self, run: StudentRun, passed_over: Sequence[str]) -> None:
        self._run = run
        self._folder = run.config.folder
        self._start_s = time.monotonic()
        teacher = run.config.teacher
        self._advice = WaitingAdvice(teacher.address if teacher else "", run.config.talk)
        self._file = MetricsFile(self._folder)
        self._tracker = Tracker(run.config.tracking, self._folder)
        self._tracker.start(run.config.name, run.config.model_dump(mode="json"), run.step)
        if not self._file.is_new:  # also of an earlier run that broke off before its first checkpoint
            self._file.write(
                {"kind": "resumed", "step": run.step, "epoch": run.epoch, "passed_over": passed_over}
            )

    def steps(self, losses: Sequence[dict[str, float]], examples_per_s: float, times: StepTimes) -> None:
        """Tells of some steps, and what may be done where most of their time is spent waiting."""
        self._write(
            kind="steps",
            losses=_means(losses),
            examples_per_s=examples_per_s,
            waiting_share=times.waiting_share,
            step_times=times.of_one(),
        )
        advice = self._advice.after(times)
        if advice is not None:
            logger.warning("%s", advice)
            self._write(kind="advice", message=advice)

    def epoch(self, losses: Sequence[dict[str, float]], times: StepTimes) -> None:
        """Tells of an epoch and of its steps' losses."""
        self._write(
            kind="epoch",
            epochs=self._run.config.epochs,
            valid=self._run.last_valid,
            metric=self._run.metric,
            losses=_means(losses),
            **self._run.conversation_facts(times),
        )

    def finish(self, facts: dict[str, Any]) -> None:
        """Writes what came of the run; `result.json` is the last file, so that it means all are there."""
        run = self._run
        run.save_student(self._folder / STUDENT_FILE)
        example = {name: tensor.contiguous().clone() for name, tensor in run.example.student.items()}
        with whole_file(self._folder / EXAMPLE_FILE) as aside:
            save_file(example, aside)
        teacher = {"name": run.objective.teacher_name, "fingerprint": run.objective.teacher_fingerprint}
        write_json(
            self._folder / STUDENT_FACTS_FILE,
            {
                "classes": list(run.splits.classes),
                "task": run.config.data.task,
                "teacher": teacher if teacher["fingerprint"] else None,
            },
        )
        lines = read_metrics(self._folder / METRICS_FILE)
        draw_losses(lines, self._folder / "losses.png")
        draw_waiting(lines, self._folder / "waiting.png")
        self._tracker.finish(facts)
        write_json(self._folder / RESULT_FILE, facts)

    def fail(self, error: BaseException) -> None:
        """Tells that the run broke off, and why: it may go on, and nobody would know."""
        with contextlib.suppress(OSError):  # the disk may be full
            told = f"{type(error).__name__}: {error}"
            self._file.write(
                {"kind": "failed", "step": self._run.step, "epoch": self._run.epoch, "error": told}
            )
        self._tracker.fail()

    def _write(self, **fields: Any) -> None:
        run = self._run
        line = {
            "step": run.step,
            "num_steps": run.num_steps,
            "epoch": run.epoch,
            "seconds": time.monotonic() - self._start_s,
            **fields,
        }
        self._file.write(line)
        if fields["kind"] != "advice":
            self._tracker.log(line)


def _means(losses: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in losses) / len(losses) for name in losses[-1]}


def _train(run: StudentRun, watch: _Watch | None, checkpoints: Checkpoints, activity: Activity) -> None:
    config = run.config
    while run.epoch < config.epochs:
        steps: list[dict[str, float]] = []
        num_told = 0
        for losses in run.train_epoch():
            steps.append(losses)
            if len(steps) - num_told >= config.log_every_steps:
                num_told = _tell(run, watch, steps, num_told)
            every = config.checkpoint_every_steps
            if every is not None and run.step % every == 0 and run.step % run.steps_per_epoch:
                with activity.now("writing a checkpoint"):
                    _save(run, watch, checkpoints)
        if num_told < len(steps):
            _tell(run, watch, steps, num_told)
        times = run.pace.epoch()
        if watch is not None and steps:
            watch.epoch(steps, times)
        if run.epoch % config.checkpoint_every_epochs == 0 or run.epoch == config.epochs:
            with activity.now("writing a checkpoint"):
                _save(run, watch, checkpoints)
    facts = run.finish()  # puts the best weights in the place of the last ones
    if watch is not None:
        watch.finish(facts)


def _tell(run: StudentRun, watch: _Watch | None, steps: Sequence[dict[str, float]], num_told: int) -> int:
    """Tells of the steps that were not told of yet; all workers do, for the mean of their times."""
    examples_per_s, times = run.pace.lap()
    if watch is not None:
        watch.steps(steps[num_told:], examples_per_s, times)
    return len(steps)


def _save(run: StudentRun, watch: _Watch | None, checkpoints: Checkpoints) -> None:
    """Writes a checkpoint; a barrier for all workers, after which it is whole."""
    checkpoints.save(run.step, run.state())
    ray_train.report({"step": run.step})
    if watch is not None:
        checkpoints.forget_older()
