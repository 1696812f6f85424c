"""A training run without Ray: data, steps, losses, exact resume."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from ray.train import WorkerGroupError

from services.teacher.families import load_teacher
from student_client.checkpoints import Checkpoints, ResumeError
from student_client.config import TrainConfig
from student_client.errors import DeadlineExceededError, TeacherUnavailableError
from student_client.records import CONFIG_FILE, config_digest, read_new_lines
from student_client.run import StudentRun
from student_client.students import build_student
from student_client.train import TrainError, _error_of, check_folder
from tests.toy import NUM_IDS
from tests.toy_server import ToyServer
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALL_LOSSES = {
    "interact": 1.0,
    "message": 0.3,
    "state": 0.2,
    "grounded": 0.5,
    "kd": 0.1,
    "hint": 0.1,
    "temperature": 2.0,
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Rows whose label is the parity of an id."""
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ids", "label"])
        for number in range(60):
            writer.writerow([number % NUM_IDS, "odd" if number % 2 else "even"])
    return path


@pytest.fixture(scope="module")
def row_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyServer]:
    config = row_config(tmp_path_factory.mktemp("rows"))
    server = ToyServer(load_teacher(config, torch.device("cpu"), torch.float32), config)
    server.start()
    yield server
    server.close()


def make_config(table: Path, address: str | None, **changes: Any) -> TrainConfig:
    content: dict[str, Any] = {
        "name": "toy",
        "output": table.parent / "out",
        "epochs": 3,
        "batch_size": 16,
        "student": {
            "factory": "tests.toy_student:ToyStudent",
            "lower": "blocks.0",
            "upper": "blocks.1",
            "num_classes_kwarg": "num_classes",
        },
        "data": {"train": table, "task": "classification", "label": "label", "features": {"ids": "int64"}},
        "teacher": None if address is None else {"address": address},
        "talk": {"codec": {"message_dim": 4}, "reading": "replace"},
        **changes,
    }
    return TrainConfig.model_validate(content)


def losses_of(run: StudentRun) -> list[float]:
    values = []
    while run.epoch < run.config.epochs:
        values += [step["loss"] for step in run.train_epoch()]
    return values


def save(run: StudentRun, folder: Path) -> None:
    Checkpoints(folder, config_digest(run.config)).save(run.step, run.state())


def load(run: StudentRun, folder: Path) -> None:
    state = Checkpoints(folder, config_digest(run.config)).load()
    assert state is not None
    run.load_state(state)


def test_how_the_teacher_reads_is_part_of_what_a_run_is_if_it_talks(table: Path) -> None:
    talks = [{}, {"reading": "add"}, {"reading": "beside"}, {"reading": "replace"}]  # the first is the second
    digests = {
        losses: {
            config_digest(make_config(table, "127.0.0.1:1", losses={losses: 1}, talk=talk)) for talk in talks
        }
        for losses in ("interact", "kd")
    }
    assert {losses: len(found) for losses, found in digests.items()} == {"interact": 3, "kd": 1}


def test_a_student_alone_learns_and_reports_what_it_is_worth(table: Path) -> None:
    run = StudentRun(make_config(table, None, epochs=30, optimizer={"lr": 0.02}))
    first, *_, last = losses_of(run)
    facts = run.finish()
    assert last < 0.5 * first
    assert facts["metric"] == "accuracy"
    assert facts["num_train"] == 48
    assert 0 <= facts["test"] <= 1
    assert facts["waiting_s"] == 0


def test_every_loss_reaches_the_parameters_it_should(table: Path, row_server: ToyServer) -> None:
    config = make_config(table, row_server.address, losses={**ALL_LOSSES, "task": 1.0}, epochs=1)
    run = StudentRun(config)
    before = {name: p.clone() for name, p in run.objective.named_parameters()}
    steps = list(run.train_epoch())
    run.close()
    assert set(steps[0]) == {"loss", "task", *ALL_LOSSES} - {"temperature"}
    weights = config.losses.model_dump()
    total = sum(weights[name] * value for name, value in steps[0].items() if name != "loss")
    assert math.isclose(steps[0]["loss"], total, rel_tol=1e-5)
    unmoved = [name for name, p in run.objective.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []


def test_the_turns_own_message_target_and_detached_readings_work(table: Path, row_server: ToyServer) -> None:
    talk = {
        "codec": {"message_dim": 4},
        "message_target": "turn",
        "detach_reply": True,
        "through_teacher": False,
        "num_rounds": 2,
    }
    run = StudentRun(make_config(table, row_server.address, losses={"interact": 1, "message": 1}, talk=talk))
    assert run.objective.talk is not None
    weight = dict(run.objective.talk.named_parameters())["teacher_codec.decoder.body.weight"]
    before = weight.detach().clone()
    steps = list(run.train_epoch())
    run.close()
    assert {"interact", "message"} <= set(steps[0])
    # Dec_T gets no gradient where gradients stop at the reply, and what has none is not even decayed.
    assert torch.equal(weight, before)


def test_a_resumed_run_continues_exactly(table: Path, row_server: ToyServer, tmp_path: Path) -> None:
    config = make_config(
        table, row_server.address, losses=ALL_LOSSES, optimizer={"schedule": "cosine", "warmup_steps": 2}
    )
    whole = StudentRun(config)
    expected = losses_of(whole)
    first = StudentRun(config)
    got = [step["loss"] for step in first.train_epoch()]
    save(first, tmp_path)
    torch.manual_seed(99)  # whatever happened in between must not matter
    second = StudentRun(config)
    load(second, tmp_path)
    got += losses_of(second)
    for run in (whole, first, second):
        run.close()
    assert got == expected
    assert whole.finish()["test"] == second.finish()["test"]


def test_a_checkpoint_of_another_config_is_refused(table: Path, tmp_path: Path) -> None:
    config = make_config(table, None)
    save(StudentRun(config), tmp_path)
    other = StudentRun(make_config(table, None, batch_size=8))
    with pytest.raises(ResumeError, match="another config"):
        load(other, tmp_path)


def test_the_kept_weights_are_those_of_the_best_epoch(table: Path) -> None:
    run = StudentRun(make_config(table, None, epochs=6, optimizer={"lr": 0.05}))
    valid = []
    while run.epoch < 6:
        list(run.train_epoch())
        valid.append(run.last_valid)
    facts = run.finish()
    assert facts["valid"] == max(valid)
    assert facts["best_epoch"] == valid.index(max(valid)) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {"kd": 1}}, "teacher: got null"),
        ({"batch_size": 1, "num_workers": 2}, "at least num_workers 2"),
        ({"num_workers": [2, 1]}, "fewest, most"),
        (
            {
                "num_workers": 2,
                "teacher": {"address": "a:1"},
                "losses": {"kd": 1},
                "peer_timeout_s": 100,
            },
            "peer_timeout_s: got 100, expected over 180",
        ),
        ({"name": "../up"}, "name"),
        ({"unknown": 1}, "unknown"),
        ({"teacher": {"address": "nowhere"}}, "expected preceptor://"),
    ],
)
def test_a_wrong_config_is_refused_by_field(table: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(table, None, **changes)


def test_a_config_file_resolves_paths_and_takes_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: run\nstudent: {factory: 'a:b'}\n"
        "data: {train: t.csv, task: regression, label: y, features: {x: float32}}\n"
    )
    config = TrainConfig.load(path, {"epochs": 3, "teacher.address": "preceptor://127.0.0.1:1"})
    assert config.data.train == str(tmp_path / "t.csv")
    assert config.epochs == 3
    assert config.teacher is not None


@pytest.mark.parametrize("factory", ["nowhere:x", "tests.toy:missing", "noseparator", "builtins:dict"])
def test_a_factory_that_gives_no_module_is_refused(table: Path, factory: str) -> None:
    student = make_config(table, None).student.model_copy(
        update={"factory": factory, "num_classes_kwarg": None}
    )
    with pytest.raises(ValueError, match=r"student\.factory"):
        build_student(student, num_classes=2)


def test_a_half_written_line_of_progress_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    assert read_new_lines(path, 0) == ([], 0)
    path.write_text('{"epoch": 1}\n{"epo')
    lines, position = read_new_lines(path, 0)
    assert lines == [{"epoch": 1}]
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert read_new_lines(path, position)[0] == [{"epoch": 2}]


def test_a_checkpoint_of_another_teachers_student_is_refused(table: Path, row_server: ToyServer) -> None:
    run = StudentRun(make_config(table, row_server.address, losses={"kd": 1}))
    state = {**run.state(), "teacher": "another"}
    with pytest.raises(ResumeError, match="another teacher"):
        run.load_state(state)
    run.close()


def test_unknown_arguments_of_a_factory_are_named(table: Path) -> None:
    student = make_config(table, None).student.model_copy(update={"kwargs": {"widht": 3}})
    with pytest.raises(ValueError, match="widht"):
        build_student(student, num_classes=2)


def test_that_the_teacher_is_away_counts_more_than_what_other_workers_say() -> None:
    missed, away = RuntimeError("Connection closed by peer"), DeadlineExceededError("turn 7")
    error = _error_of("toy", WorkerGroupError("failed", {0: missed, 1: away}))
    assert (type(error), str(error)) == (
        TeacherUnavailableError,
        "run toy: DeadlineExceededError: turn 7",
    )
    error = _error_of("toy", WorkerGroupError("failed", {1: ValueError("later"), 0: missed}))
    assert (type(error), str(error)) == (TrainError, "run toy: RuntimeError: Connection closed by peer")


def test_what_a_run_can_not_be_is_told_before_anything_starts(table: Path) -> None:
    with pytest.raises(ValueError, match="got 48 examples, expected at least 49, one a worker"):
        StudentRun(make_config(table, None, batch_size=64), world_size=49)
    package = table.parent / "working_dir_files" / "_ray_pkg_1" / "out"
    with pytest.raises(ValueError, match=r"output: got .* which is deleted after it"):
        check_folder(make_config(table, None, output=package))
    with pytest.raises(ValueError, match=r"output: got .*table\.csv, which can't be written"):
        check_folder(make_config(table, None, output=table))
    config = make_config(table, None)
    (config.folder / "checkpoint_1").mkdir(parents=True)
    (config.folder / CONFIG_FILE).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    check_folder(config)
    other = make_config(table, None, epochs=4)
    with pytest.raises(ResumeError, match="holds checkpoints of another config"):
        check_folder(other)
    check_folder(other, fresh=True)
