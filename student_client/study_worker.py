"""Runs one cell of a study in this process: its tables, its training run, what came of it."""

from __future__ import annotations

import datetime as dt
import fcntl
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from student_client.config import TrainConfig
from student_client.costs import cost_facts
from student_client.environment import packages
from student_client.factories import load_factory
from student_client.run import StudentRun
from student_client.whole_files import put_folder

if TYPE_CHECKING:
    from student_client.study_cells import Cell
    from student_client.study_results import TeacherFacts

__all__ = ["Job", "failure", "run_job"]

UNLABELLED_FILE = "unlabelled.csv"
_TENANT = "study"
_TOLD_BY = ("probe", "head", "first_student", "lessons")
_TIMED_ROWS = 32
_NUM_TIMED_BATCHES = 8
_NUM_TIMINGS = 3
_MS = 1000.0


@dataclass(frozen=True)
class Job:
    """A cell and all that a worker has to know to run it.

    Attributes:
        cell: which one.
        key: of the cell.
        data_folder: where tables are kept, a folder for each `Cell.data_name`.
        python_path: folders that the task is imported from.
        address: of the teacher; None: it needs none.
        teacher: what the teacher said it is.
    """

    cell: Cell
    key: str
    data_folder: Path
    python_path: tuple[Path, ...]
    address: str | None
    teacher: TeacherFacts


def run_job(job: Job) -> dict[str, Any]:
    """Runs a cell to its end and returns its line.

    Raises:
        ValueError: its task or its config is wrong.
        TeacherError: the conversation failed.
        DivergedError: a loss is not finite.
    """
    torch.set_num_threads(1)
    config = _config(job, _tables(job))
    begun_s = time.perf_counter()
    run = StudentRun(config, patience_s=config.teacher.options.deadline_s if config.teacher else 0.0)
    try:
        while run.epoch < config.epochs:
            for _ in run.train_epoch():
                pass
        facts = run.finish()
        line = _line(job, run, facts)
    finally:
        run.close()
    line["wall_s"] = round(time.perf_counter() - begun_s, 3)
    line["student_ms_per_example"] = _ms_per_example(run)
    return line


def failure(job: Job, error: str, traceback: str) -> dict[str, Any]:
    """Returns the line of a cell that failed; `traceback` is for who wrote its task or its student."""
    told = {"error": error, "traceback": traceback, "finished_at": _now()}
    return {**job.cell.coordinates, "key": job.key, **told}


def _line(job: Job, run: StudentRun, facts: dict[str, Any]) -> dict[str, Any]:
    versions = {"python": platform.python_version(), **packages()}
    return {
        **job.cell.coordinates,
        "key": job.key,
        "num_examples": facts["epochs"] * facts["num_train"],
        **{name: facts[name] for name in ("metric", "valid", "test", "best_epoch", "num_steps", "num_train")},
        "teacher": _costs(run, facts),
        "told_by": {name: facts[name] for name in _TOLD_BY if name in facts},
        "teacher_name": job.teacher.name,
        "teacher_fingerprint": job.teacher.fingerprint,
        "student_parameters": sum(each.numel() for each in run.objective.student.parameters()),
        "teacher_parameters": job.teacher.num_parameters,
        "versions": versions,
        "finished_at": _now(),
    }


def _costs(run: StudentRun, facts: dict[str, Any]) -> dict[str, float]:
    """Returns what the teacher did for a run, and for the lessons before it."""
    found = [facts["asking"]] if "asking" in facts else []
    found += [facts["lessons"]["costs"]] if "lessons" in facts else []
    if run.objective.talk is not None:
        found.append(cost_facts(run.objective.talk.conversation))
    names = {"turns": "num_turns", "tokens": "num_tokens"}
    names |= {name: name for name in ("bytes_sent", "bytes_received", "compute_s", "waiting_s")}
    return {name: round(sum(costs[field] for costs in found), 4) for name, field in names.items()}


def _config(job: Job, tables: Path) -> TrainConfig:
    """Returns the config of the cell's run, with its tables and its teacher's address."""
    content = job.cell.config.model_dump()
    content["name"] = f"study-{job.key[:16]}"
    content["data"] |= {name: str(tables / f"{name}.csv") for name in ("train", "valid", "test")}
    unlabelled = tables / UNLABELLED_FILE
    if job.cell.takes_unlabelled and unlabelled.exists():
        content["data"]["unlabelled"] = str(unlabelled)
    if job.address is not None and content["teacher"] is not None:
        content["teacher"]["address"] = job.address
        # One tenant, so that what the teacher keeps of a row it has read serves all cells.
        content["teacher"]["tenant"] = content["teacher"]["tenant"] or _TENANT
    return TrainConfig.model_validate(content)


def _tables(job: Job) -> Path:
    """Returns the folder of the cell's tables; they are made once for all cells that share them."""
    cell, folder = job.cell, job.data_folder / job.cell.data_name
    job.data_folder.mkdir(parents=True, exist_ok=True)
    with (job.data_folder / f"{cell.data_name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be making them
        if not folder.exists():
            make = load_factory(cell.source.make, job.python_path, f"tasks.{cell.task}.make")
            with tempfile.TemporaryDirectory(dir=job.data_folder) as aside:
                tables = Path(aside) / "tables"
                tables.mkdir()
                make(tables, num_labels=cell.labels, seed=cell.seed, **cell.source.kwargs)
                missing = [
                    name for name in ("train", "valid", "test") if not (tables / f"{name}.csv").exists()
                ]
                if missing:
                    raise ValueError(f"tasks.{cell.task}.make: {cell.source.make} wrote no {missing[0]}.csv")
                put_folder(tables, folder)
    return folder


@torch.no_grad()
def _ms_per_example(run: StudentRun) -> float:
    """Returns how long the student takes for an example, alone, in batches on one thread."""
    run.objective.eval()
    batches = list(run.splits.test.batches(_TIMED_ROWS))[:_NUM_TIMED_BATCHES]
    seconds = []
    for _ in range(_NUM_TIMINGS):
        begun_s = time.perf_counter()
        for batch in batches:
            run.objective.predict(batch)
        seconds.append(time.perf_counter() - begun_s)
    num_rows = sum(len(batch.labels) for batch in batches)
    return round(_MS * statistics.median(seconds) / num_rows, 5)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
