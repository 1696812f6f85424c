"""Lessons: a conversation that is trained first, and the student that is distilled from its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from student_client.activity import Activity
from student_client.batches import Examples
from student_client.lessons import Tutor, take_lessons
from student_client.lessons_config import LessonsConfig
from student_client.probe import worth_of
from student_client.train import check
from tests.test_train_run import make_config
from tests.toy_rows import all_rows, labelled, row_server, rows_run, unlabelled

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import _GeneratorContextManager
    from pathlib import Path

    from student_client import TeacherTalk
    from student_client.run import StudentRun
    from tests.toy_server import ToyServer

__all__ = ["labelled", "row_server", "unlabelled"]

ADD = {
    "reading": "add",
    "codec": {"message_dim": 32, "message_len": 1},
    "lr": 0.03,
    "epochs": 10,
    "batch_size": 5,
}


class _Heard(Activity):
    """Remembers all that it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def now(self, text: str) -> _GeneratorContextManager[None]:
        self.told.append(text)
        return super().now(text)


def _run(labelled: Path, server: ToyServer, unlabelled: Path | None = None, **lessons: Any) -> StudentRun:
    losses = {"task": 0.0, "kd": 1.0, "kd_source": "lessons"}
    return rows_run(labelled, unlabelled, server.address, losses=losses, lessons={**ADD, **lessons})


def _facts(run: StudentRun) -> dict[str, Any]:
    for _ in run.train_epoch():
        pass
    return run.finish()


def test_the_student_is_told_what_the_conversation_answers(
    labelled: Path, unlabelled: Path, row_server: ToyServer
) -> None:
    run = _run(labelled, row_server, unlabelled, base="none", epochs=40)
    rows = all_rows(run)
    told = rows.told
    assert told is not None
    assert told.shape == (32, 2)  # rows without labels are answered, too
    facts = _facts(run)
    run.close()
    assert facts["kd_source"] == "lessons"
    assert "probe" not in facts
    lessons = facts["lessons"]
    assert lessons["valid"] == pytest.approx(worth_of(told[:20], rows.labels[:20]))
    assert lessons["valid"] > 0.5  # there was no answer to begin with
    assert lessons["costs"]["num_turns"] > 10 * 4  # steps have gradients, and all is asked about at the end
    assert lessons["costs"]["num_tokens"] > 0


def test_looking_through_a_config_takes_one_lesson_only(labelled: Path, row_server: ToyServer) -> None:
    run = _run(labelled, row_server)
    run.close()
    activity = _Heard()
    check(run.config, activity)
    assert [each for each in activity.told if each.startswith("lesson")] == [
        "lesson 1 of 1, the best so far 0"
    ]


def test_lessons_that_help_nobody_leave_the_answer_as_it_was(labelled: Path, row_server: ToyServer) -> None:
    helpful = _run(labelled, row_server)
    splits = (helpful.splits.train, helpful.splits.valid, helpful.splits.test)
    parts = [part for part in splits if isinstance(part, Examples)]
    # An answer that could not be better: whatever is learnt makes it worse on the validation rows.
    sure = [20.0 * torch.nn.functional.one_hot(part.labels, 2).float() for part in parts]
    config = helpful.config.model_copy(update={"lessons": LessonsConfig(**{**ADD, "weight_decay": 0.5})})
    answers, facts = take_lessons(config, parts, sure, Activity())
    helpful.close()
    if facts["epoch"] == 0:
        assert torch.equal(answers[1], sure[1])
    losses = [torch.nn.functional.cross_entropy(each[1], parts[1].labels) for each in (answers, sure)]
    assert losses[0] <= losses[1]


def test_lessons_lower_the_loss_of_an_answer_that_knows_nothing(
    labelled: Path, row_server: ToyServer
) -> None:
    run = _run(labelled, row_server, epochs=1)
    splits = (run.splits.train, run.splits.valid, run.splits.test)
    parts = [part for part in splits if isinstance(part, Examples)]
    config = run.config.model_copy(update={"lessons": LessonsConfig(**ADD)})
    answers, facts = take_lessons(config, parts, [torch.zeros(20, 2)] * 3, Activity())
    run.close()
    assert facts["epoch"] > 0
    assert torch.nn.functional.cross_entropy(answers[1], parts[1].labels) < 0.693


def test_the_better_of_probe_and_head_is_corrected(labelled: Path, row_server: ToyServer) -> None:
    facts = _facts(_run(labelled, row_server, epochs=1))
    assert ("probe" in facts) != ("head" in facts)


def test_lessons_change_no_draw_of_the_student(labelled: Path, row_server: ToyServer) -> None:
    with_lessons, probe_only = (
        rows_run(
            labelled,
            None,
            row_server.address,
            losses={"task": 1.0, "kd": 1.0, "kd_source": source},
            lessons={**ADD, "epochs": 1},
        )
        for source in ("lessons", "probe")
    )
    for first, second in zip(
        with_lessons.objective.student.parameters(), probe_only.objective.student.parameters(), strict=True
    ):
        assert torch.equal(first, second)
    assert torch.equal(
        with_lessons.splits.train.example(20).labels, probe_only.splits.train.example(20).labels
    )
    steps = [next(iter(run.train_epoch())) for run in (with_lessons, probe_only)]
    assert steps[0]["task"] == steps[1]["task"]
    with_lessons.close()
    probe_only.close()


def test_the_same_seed_gives_the_same_answers(labelled: Path, row_server: ToyServer) -> None:
    told = []
    for _ in range(2):
        run = _run(labelled, row_server, epochs=2)
        told.append(all_rows(run).told)
        run.close()
    assert told[0] is not None
    assert told[1] is not None
    torch.testing.assert_close(told[0], told[1], rtol=1e-5, atol=1e-6)


def test_values_are_corrected_too(labelled: Path, row_server: ToyServer) -> None:
    run = rows_run(
        labelled,
        None,
        row_server.address,
        task="regression",
        student={
            "factory": "tests.toy_student:ToyStudent",
            "kwargs": {"dropout": 0.0, "num_classes": 1},
            "lower": "blocks.0",
            "upper": "blocks.1",
        },
        losses={"task": 0.0, "kd": 1.0, "kd_source": "lessons"},
        lessons=ADD,
    )
    facts = _facts(run)
    run.close()
    assert facts["metric"] == "rmse"
    assert facts["lessons"]["valid"] <= facts["probe"]["valid"] + 1e-6


@pytest.mark.parametrize("num_rounds", [1, 2])
def test_an_answer_begins_as_the_one_that_is_there(
    server: ToyServer, connect: Callable[..., TeacherTalk], num_rounds: int
) -> None:
    talk = connect(server.address, message_len=3)
    tutor, base = Tutor(talk, 5, num_rounds), torch.randn(2, 5)
    answer = tutor.answer(tutor.start({"ids": torch.zeros(2, 4, dtype=torch.int64)}, 2), base)
    assert torch.equal(answer, base)
    torch.autograd.backward(answer.sum())
    assert tutor.head.weight.grad is not None
    assert tutor.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("epochs", [1, 9])
def test_lessons_may_be_of_any_number_of_steps(labelled: Path, row_server: ToyServer, epochs: int) -> None:
    run = _run(labelled, row_server, epochs=epochs, batch_size=32)  # a step an epoch
    assert all_rows(run).told is not None
    run.close()


def test_messages_of_any_length_can_not_be_learned(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lessons.codec.*\n.*message_len: got null, expected a number"):
        make_config(tmp_path / "table.csv", None, lessons={"codec": {"message_dim": 8}})
