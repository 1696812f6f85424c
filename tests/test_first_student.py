"""A first student that learns from a teacher's outputs, and then has a say in them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from student_client.activity import Activity
from student_client.batches import Examples
from student_client.first_student import choose_weights, mixed_with_student
from student_client.lessons import Tutor
from student_client.lessons_config import LessonsConfig
from student_client.probe import fit_held_out, fit_probe
from tests.test_lessons import ADD
from tests.test_train_run import make_config
from tests.toy_rows import all_rows, labelled, row_server, rows_run, unlabelled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from student_client import TeacherTalk
    from student_client.run import StudentRun
    from tests.toy_server import ToyServer

__all__ = ["labelled", "row_server", "unlabelled"]

NUM_LABELLED, NUM_ROWS = 20, 32


def _run(labelled: Path, unlabelled: Path | None, epochs: int = 40) -> StudentRun:
    return rows_run(labelled, unlabelled, epochs=epochs, optimizer={"lr": 0.03})


def _parts(run: StudentRun) -> list[Examples]:
    splits = (run.splits.train, run.splits.valid, run.splits.test)
    return [part for part in splits if isinstance(part, Examples)]


def _parities(rows: Tensor) -> Tensor:
    """Returns sure outputs for ids: their parity, which is their label."""
    return 4.0 * functional.one_hot(rows % 2, 2).float()


def test_a_first_student_makes_outputs_better_that_know_nothing_of_the_labelled_rows(
    labelled: Path, unlabelled: Path
) -> None:
    run = _run(labelled, unlabelled, epochs=60)
    parts = _parts(run)
    # The teacher knows nothing of the rows to judge by, and says one and the same of all the unlabelled ones.
    outputs = [torch.zeros(len(part), 2) for part in parts]
    outputs[0][NUM_LABELLED:] = torch.tensor([1.0, -1.0])
    skewed = [dataclasses.replace(part, labels=torch.zeros_like(part.labels)) for part in parts[1:]]
    mixed, facts = mixed_with_student(run.config, [parts[0], *skewed], outputs, 2, Activity())
    before, after = (functional.cross_entropy(each[1], skewed[0].labels).item() for each in (outputs, mixed))
    assert facts["weights"][1] > 0
    assert after < before - 0.3
    assert facts["valid"] == facts["test"] == 1
    assert [each.shape for each in mixed] == [each.shape for each in outputs]


def test_what_it_says_does_not_depend_on_labelled_rows(labelled: Path, unlabelled: Path) -> None:
    run = _run(labelled, unlabelled, epochs=3)
    parts = _parts(run)
    said = []
    for of_labelled in (0.0, 100.0):
        outputs = [torch.full((len(part), 2), of_labelled) for part in parts]
        outputs[0][NUM_LABELLED:] = _parities(parts[0].student["ids"][NUM_LABELLED:])
        outputs[1] = torch.zeros(len(parts[1]), 2)
        mixed, facts = mixed_with_student(run.config, parts, outputs, 2, Activity())
        assert facts["weights"][1] > 0
        said.append(mixed[1])  # 0 times a weight, and what the student says
    assert said[0].abs().sum() > 0
    assert torch.equal(said[0], said[1])


@pytest.mark.parametrize(
    ("own", "expected"), [(1.0, (0.0, 1.0)), (0.6, (0.5, 0.5)), (0.2, (1.0, 0.0)), (-0.6, (0.75, 0.25))]
)
def test_numbers_are_averaged_as_their_labels_ask(own: float, expected: tuple[float, float]) -> None:
    numbers = torch.full((4,), {1.0: 1.0, 0.6: 0.5, 0.2: 0.4, -0.6: 0.15}[own])
    known = torch.full((4, 1), 0.4)
    assert choose_weights(known, torch.full((4, 1), own), numbers) == expected


def test_two_outputs_that_are_wrong_are_not_taken_for_nothing() -> None:
    wrong = torch.tensor([[9.0, -9.0]])
    assert sum(choose_weights(wrong, wrong, torch.tensor([1]))) > 0


def test_outputs_that_are_not_finite_are_told(labelled: Path) -> None:
    with pytest.raises(ValueError, match=r"first_student: what it says holds a number that is not finite"):
        choose_weights(torch.zeros(1, 2), torch.full((1, 2), float("nan")), torch.tensor([1]))


def test_without_unlabelled_rows_there_is_no_first_student(labelled: Path) -> None:
    run = _run(labelled, None)
    parts = _parts(run)
    outputs = [torch.randn(len(part), 2) for part in parts]
    mixed, facts = mixed_with_student(run.config, parts, outputs, 2, Activity())
    assert all(torch.equal(*pair) for pair in zip(mixed, outputs, strict=True))
    assert facts == {}


def test_it_changes_no_draw(labelled: Path, unlabelled: Path) -> None:
    run = _run(labelled, unlabelled, epochs=1)
    parts = _parts(run)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    mixed_with_student(run.config, parts, [torch.zeros(len(part), 2) for part in parts], 2, Activity())
    assert torch.equal(torch.rand(3), expected)


def test_a_run_is_told_the_mixture_where_there_is_no_conversation(
    labelled: Path, unlabelled: Path, row_server: ToyServer
) -> None:
    losses = {"task": 0.0, "kd": 1.0, "kd_source": "lessons"}
    turns = []
    for epochs in (0, 1):
        run = rows_run(
            labelled, unlabelled, row_server.address, losses=losses, lessons={**ADD, "epochs": epochs}
        )
        told = all_rows(run).told
        assert told is not None
        assert told.shape == (NUM_ROWS, 2)
        for _ in run.train_epoch():
            continue
        facts = run.finish()
        run.close()
        assert {"valid", "test", "weights", "seconds"} == set(facts["first_student"])
        assert ("lessons" in facts) == (epochs == 1)
        turns.append(facts["asking"]["num_turns"])
    assert turns[0] == turns[1]  # to ask for a probe's states and the head's outputs


def test_a_row_is_told_of_without_its_own_label() -> None:
    torch.manual_seed(3)
    states, labels = torch.randn(30, 4), torch.randint(3, (30,))
    others, theirs = torch.randn(50, 4), torch.randint(3, (50,))
    found = []
    for row_label in (0, 1):
        changed = labels.index_fill(0, torch.tensor([7]), row_label)
        found.append(fit_held_out(states, changed, others, theirs, 3))
    assert torch.equal(found[0][7], found[1][7])
    assert not torch.equal(found[0], found[1])  # others learnt from it


def test_lessons_begin_with_what_probes_say_of_rows_they_did_not_see(
    labelled: Path, unlabelled: Path, row_server: ToyServer
) -> None:
    told = {}
    for source in ("probe", "lessons"):
        losses = {"task": 0.0, "kd": 1.0, "kd_source": source}
        lessons = {**ADD, "epochs": 0, "first_student": False}
        run = rows_run(labelled, unlabelled, row_server.address, losses=losses, lessons=lessons)
        told[source] = all_rows(run).told
        head = "head" in run.finish()
        run.close()
    assert told["probe"] is not None
    assert told["lessons"] is not None
    same = told["probe"] == told["lessons"]
    assert not head
    assert same[NUM_LABELLED:].all()
    assert not same[:NUM_LABELLED].any()


def test_held_out_outputs_are_in_the_order_of_the_rows() -> None:
    torch.manual_seed(4)
    states = torch.randn(200, 3)
    numbers = states @ torch.tensor([1.0, -2.0, 0.5])
    held_out = fit_held_out(states, numbers, states, numbers, 0)
    torch.testing.assert_close(held_out[:, 0], numbers, atol=0.01, rtol=0.01)
    assert fit_probe(states, numbers, states, numbers, 0)(states).shape == held_out.shape


@pytest.mark.parametrize(
    ("fields", "std"),
    [({}, 0.5), ({"reading": "add"}, 0.02), ({"reading": "add", "init_std": 0.1}, 0.1)],
)
def test_a_message_begins_at_the_scale_of_states_or_near_nothing(
    server: ToyServer, connect: Callable[..., TeacherTalk], fields: dict[str, str], std: float
) -> None:
    config = LessonsConfig.model_validate(fields)
    assert config.position_std == std
    talk = connect(server.address, message_len=64)
    Tutor(talk, 5, 1, config.position_std)
    position = talk.teacher_codec.decoder.position
    assert position is not None
    assert position.std().item() == pytest.approx(std, rel=0.2)


def test_passes_can_not_be_negative(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"epochs"):
        make_config(tmp_path / "table.csv", None, lessons={"epochs": -1})


def test_a_run_with_a_teacher_and_no_word_of_losses_is_taught_by_lessons(tmp_path: Path) -> None:
    table, address = tmp_path / "table.csv", "preceptor://127.0.0.1:1"
    taught = make_config(table, address)
    assert (taught.losses.kd_source, taught.losses.kd > 0) == ("lessons", True)
    assert not make_config(table, None).needs_teacher
    assert not make_config(table, address, losses={"task": 1.0}).needs_teacher  # a word was said
    softer = make_config(table, address, losses={"temperature": 4.0})
    assert softer.losses == taught.losses.model_copy(update={"temperature": 4.0})
    data = {
        **dict.fromkeys(("train", "valid", "test"), table),
        "task": "classification",
        "label": "label",
        "features": {"ids": "int64"},
        "stream": True,
    }
    assert not make_config(table, address, data=data).needs_teacher  # rows of a stream are not kept


def test_a_run_that_learns_by_the_teachers_layers_is_taught_by_nothing_else(tmp_path: Path) -> None:
    talk = {"reading": "replace", "swap_probability": 0.5}
    config = make_config(tmp_path / "table.csv", "preceptor://127.0.0.1:1", talk=talk)
    assert config.losses.kd == 0


def test_lessons_without_answers_and_passes_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"epochs: got 0 with base none"):
        make_config(tmp_path / "table.csv", None, lessons={"base": "none", "epochs": 0})


def test_numbers_without_a_base_begin_at_the_labels_mean(labelled: Path, row_server: ToyServer) -> None:
    student = {
        "factory": "tests.toy_student:ToyStudent",
        "kwargs": {"dropout": 0.0, "num_classes": 1},
        "lower": "blocks.0",
        "upper": "blocks.1",
    }
    losses = {"task": 0.0, "kd": 1.0, "kd_source": "lessons"}
    lessons = {**ADD, "base": "none", "epochs": 1, "lr": 1e-9}
    run = rows_run(
        labelled, None, row_server.address, task="regression", student=student, losses=losses, lessons=lessons
    )
    told = all_rows(run).told
    run.close()
    assert told is not None
    torch.testing.assert_close(told, torch.full((NUM_LABELLED, 1), 0.5), atol=1e-4, rtol=0)
