"""Runs a study's cells: those of a teacher while it is served, some at a time, each once.

Everything that is finished is on the disk before the next cell begins, so the study may be stopped at any
time: the same command goes on.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from student_client.locks import folder_lock
from student_client.study_results import StudyResults, TeacherFacts, is_finished
from student_client.study_teachers import TeacherFailedError, served
from student_client.study_worker import Job, failure, run_job
from student_client.study_workers import Failed, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from student_client.study_cells import Cell
    from student_client.study_config import StudyConfig
    from student_client.study_teachers import ServedTeacher

__all__ = ["Study", "StudyState", "time_left_s"]

_FINER = (("task", "labels", "student", "method"), ("task", "method"), ("task",), ())


@dataclass
class StudyState:
    """How far a study is, for people.

    Attributes:
        num_cells: all that are wanted.
        num_done: those that are finished, in this run or an earlier one.
        failures: those that failed in this run, and why.
        doing: what is being done.
        time_left_s: about how long it will take; None: nobody knows yet.
    """

    num_cells: int
    num_done: int = 0
    failures: list[tuple[Cell, str]] = field(default_factory=list)
    doing: str = ""
    time_left_s: float | None = None


class Study:
    """Some cells of a study.

    Args:
        config: of the study.
        cells: those that are wanted.
        parallelism: cells that are run at a time; None: the config's.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        config: StudyConfig,
        cells: Sequence[Cell],
        *,
        parallelism: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.cells = list(cells)
        self.state = StudyState(len(self.cells))
        self._parallelism = parallelism or config.parallelism
        self._clock = clock
        self._results = StudyResults(config.folder)

    def lines(self) -> list[dict[str, Any]]:
        """Returns what came of the cells that are finished, in the order of the study."""
        return [line for line in map(self._finished, self.cells) if line is not None]

    def open_cells(self) -> list[Cell]:
        """Returns the cells that are not finished, as far as is known of their teachers."""
        return [cell for cell in self.cells if self._finished(cell) is None]

    def _finished(self, cell: Cell) -> dict[str, Any] | None:
        return self._results.finished(cell, self._known(cell.teacher).fingerprint)

    def _sift(self, cells: Sequence[Cell]) -> list[Cell]:
        """Writes down by their present names cells that are finished; returns those that are not."""
        facts = {name: self._known(name) for name in {cell.teacher for cell in cells}}
        return [cell for cell in cells if not self._results.write_name(cell, facts[cell.teacher].fingerprint)]

    def run(self, on_change: Callable[[StudyState], None] = lambda _: None) -> StudyState:
        """Runs the cells that are not finished; returns how it went.

        Args:
            on_change: called about twice a second, and after each cell.

        Raises:
            FolderLockedError: another process runs it.
        """
        with folder_lock(self.config.folder, "another process runs this study"):
            self._results = StudyResults(self.config.folder)  # whoever had the lock may have written since
            waiting: dict[str | None, list[Cell]] = {}
            for cell in self._sift(self.cells):
                waiting.setdefault(cell.teacher, []).append(cell)
            self.state.num_done = len(self.cells) - sum(map(len, waiting.values()))
            with Workers(run_job, self._parallelism) as workers:
                while waiting:
                    teacher = next(iter(waiting))
                    later = [cell for name, cells in waiting.items() if name != teacher for cell in cells]
                    self._run_with(teacher, waiting.pop(teacher), later, workers, on_change)
        self.state.doing, self.state.time_left_s = "", 0.0
        on_change(self.state)
        return self.state

    def _run_with(
        self,
        name: str | None,
        cells: Sequence[Cell],
        later: Sequence[Cell],
        workers: Workers[Job, dict[str, Any]],
        on_change: Callable[[StudyState], None],
    ) -> None:
        """Runs the cells of a teacher, which is served meanwhile."""
        if name is None:
            self._run_cells(cells, later, None, workers, on_change)
            return
        source = self.config.teachers[name]
        self.state.doing = f"starting teacher {name}" + (
            ", made first where it is new" if source.make else ""
        )
        self.state.time_left_s = self._time_left_s(cells, later)
        on_change(self.state)
        options = next(cell.config.teacher.options for cell in cells if cell.config.teacher is not None)
        folder = self.config.folder / "teachers"
        try:
            with served(
                name, source, folder, options=options, python_path=self.config.python_path
            ) as teacher:
                self._results.remember(source, teacher.facts)
                # It may be another one than it was, or one whose cells are finished all the same.
                wanted = self._sift([cell for cell in self.cells if cell.teacher == name])
                self.state.num_done += len(cells) - len(wanted)
                self._run_cells(wanted, later, teacher, workers, on_change)
        except TeacherFailedError as error:
            for cell in cells:
                self._settle(self._job(cell, None), Failed(str(error)))

    def _run_cells(
        self,
        cells: Sequence[Cell],
        later: Sequence[Cell],
        teacher: ServedTeacher | None,
        workers: Workers[Job, dict[str, Any]],
        on_change: Callable[[StudyState], None],
    ) -> None:
        left = {id(cell): cell for cell in cells}

        def look() -> bool:
            self.state.doing = "; ".join(job.cell.title for job in workers.running)
            self.state.time_left_s = self._time_left_s([*left.values()], later)
            on_change(self.state)
            return teacher is None or teacher.is_alive()

        jobs: dict[str, list[Job]] = {}
        for cell in cells:
            job = self._job(cell, teacher)
            jobs.setdefault(job.key, []).append(job)
        try:
            for job, outcome in workers.run([alike[0] for alike in jobs.values()], look):
                for each in jobs[job.key]:  # of other names: tasks may share tables, methods a config
                    del left[id(each.cell)]
                    self._settle(each, outcome)
        except BaseException:
            workers.stop()  # before the teacher is: they would wait for it to come back
            raise
        for cell in left.values():
            self._settle(self._job(cell, teacher), Failed("its teacher's process has ended"))

    def _settle(self, job: Job, outcome: dict[str, Any] | Failed) -> None:
        """Writes down what came of a cell."""
        line = (
            failure(job, outcome.error, outcome.traceback)
            if isinstance(outcome, Failed)
            else {**outcome, **job.cell.coordinates}
        )
        self._results.add(line)
        if is_finished(line):
            self.state.num_done += 1
        else:
            self.state.failures.append((job.cell, line["error"]))

    def _job(self, cell: Cell, teacher: ServedTeacher | None) -> Job:
        facts = TeacherFacts() if teacher is None else teacher.facts
        return Job(
            cell=cell,
            key=cell.key(facts.fingerprint),
            data_folder=self.config.folder / "data",
            python_path=self.config.python_path,
            address=None if teacher is None else teacher.address,
            teacher=facts,
        )

    def _known(self, name: str | None) -> TeacherFacts:
        """Returns what is known of a teacher without asking it; nothing where there is none."""
        known = None if name is None else self._results.teacher(self.config.teachers[name])
        return known or TeacherFacts()

    def _time_left_s(self, now: Sequence[Cell], later: Sequence[Cell]) -> float | None:
        """Returns about how long some cells take, by how long others like them took."""
        return time_left_s([*now, *later], self._results.lines, self._parallelism)


def time_left_s(cells: Sequence[Cell], lines: Sequence[dict[str, Any]], parallelism: int) -> float | None:
    """Returns about how long some cells take together; None where nothing is known.

    Args:
        cells: what there is to do.
        lines: of cells that were done; those most like a cell say how long it takes.
        parallelism: cells at a time.
    """
    tables: list[dict[tuple[Any, ...], list[float]]] = [{} for _ in _FINER]
    for line in lines:
        if is_finished(line):
            for names, table in zip(_FINER, tables, strict=True):
                table.setdefault(tuple(line[name] for name in names), []).append(line["wall_s"])
    total_s = 0.0
    for cell in cells:
        coordinates = cell.coordinates
        places = (tuple(coordinates[name] for name in names) for names in _FINER)
        like = next((t[place] for place, t in zip(places, tables, strict=True) if place in t), None)
        if like is None:
            return None
        total_s += statistics.fmean(like)
    return total_s / parallelism
