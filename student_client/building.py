"""Builds what a run trains, and on what: a student, its conversation, and what is told of its examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from student_client.objective import Objective, build_objective
from student_client.students import build_student
from student_client.told_rows import told_rows

if TYPE_CHECKING:
    from student_client.activity import Activity
    from student_client.batches import Batch
    from student_client.config import TrainConfig
    from student_client.data import Splits
    from student_client.told_file import ToldFile

__all__ = ["build"]


def build(
    config: TrainConfig,
    splits: Splits,
    example: Batch,
    patience_s: float,
    activity: Activity,
    keep: ToldFile | None = None,
) -> tuple[Objective, Splits, dict[str, Any]]:
    """Builds a student and what it is trained by.

    Args:
        config: of the run.
        splits: its examples.
        example: some of them; the student runs on them once.
        patience_s: seconds to go on asking a teacher that does not answer.
        activity: is told of what takes a while.
        keep: where what examples are told is found if it was found out before.

    Returns:
        The student with its conversation; the examples, told what is distilled if that is known; what
        the run's result says of distillation.

    Raises:
        ValueError: the config does not fit the data or the student.
        TeacherError: see `student_client.errors`.
    """
    student = build_student(
        config.student,
        num_classes=len(splits.classes),
        task=config.data.task,
        python_path=config.python_path,
    )
    objective = build_objective(config, student, example, patience_s, activity)
    return objective, *told_rows(config, splits, objective.talking, activity, keep)
