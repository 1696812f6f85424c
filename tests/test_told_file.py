"""What rows are told is found out once: by the first worker, for all of them and for a resumed run."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch

from student_client.activity import Activity
from student_client.batches import Examples
from student_client.costs import cost_facts
from student_client.told_file import TOLD_FILE, ToldFile, told_key
from tests.test_train_run import make_config
from tests.toy_rows import all_rows, labelled, row_server, rows_run, unlabelled

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from student_client.config import TrainConfig
    from student_client.run import StudentRun
    from tests.toy_server import ToyServer

__all__ = ["labelled", "row_server", "unlabelled"]

FACTS: dict[str, Any] = {"probe": {"valid": 0.5}}
LABELS = torch.tensor([0, 1, -100, -100])
ROWS = Examples({"ids": torch.arange(4)}, ("a", "b", "c", "d"), LABELS)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    table = tmp_path / "table.csv"
    table.write_text("text,label\n")
    config = make_config(table, None)
    config.folder.mkdir(parents=True)
    return config


def keep_of(config: TrainConfig, rank: int = 0, activity: Activity | None = None, **how: Any) -> ToldFile:
    return ToldFile(config, rank, activity or Activity(), **how)


def never() -> tuple[Tensor, dict[str, Any]]:
    raise AssertionError("it was known already")


def test_what_was_found_out_is_found_again(config: TrainConfig) -> None:
    outputs = torch.randn(4, 3)
    first = keep_of(config)([ROWS], "a", lambda: (outputs, FACTS))
    again = keep_of(config)([ROWS], "a", never)
    checked = keep_of(config, writes=False)([ROWS], "a", never)
    for found, facts in (first, again, checked):
        assert torch.equal(found, outputs)
        assert facts == FACTS
    other, _ = keep_of(config)([ROWS], "b", lambda: (outputs + 1, FACTS))
    assert torch.equal(other, outputs + 1)


def test_a_check_leaves_nothing_behind(config: TrainConfig) -> None:
    outputs, _ = keep_of(config, writes=False)([ROWS], "a", lambda: (torch.ones(4, 2), FACTS))
    assert torch.equal(outputs, torch.ones(4, 2))
    assert not (config.folder / TOLD_FILE).exists()


def test_a_file_that_lost_a_part_is_found_out_anew(config: TrainConfig) -> None:
    keep_of(config)([ROWS], "a", lambda: (torch.ones(4, 2), FACTS))
    path = config.folder / TOLD_FILE
    path.write_bytes(path.read_bytes()[:-8])
    outputs, _ = keep_of(config)([ROWS], "a", lambda: (torch.zeros(4, 2), FACTS))
    assert torch.equal(outputs, torch.zeros(4, 2))


def test_another_worker_waits_for_the_first_one_and_says_so(config: TrainConfig) -> None:
    keep_of(config)([ROWS], "of an earlier run", lambda: (torch.ones(4, 2), FACTS))
    activity, found = Activity(), []
    second = keep_of(config, 1, activity)
    thread = threading.Thread(target=lambda: found.append(second([ROWS], "a", never)))
    thread.start()
    while thread.is_alive() and not activity.latest[0]:
        thread.join(0.01)
    assert activity.latest[0].startswith("waiting until the first worker")
    assert not found
    outputs = torch.randn(4, 2)
    keep_of(config)([ROWS], "a", lambda: (outputs, FACTS))
    thread.join(10)
    assert torch.equal(found[0][0], outputs)


def test_a_worker_that_has_other_rows_than_the_first_one_says_so(config: TrainConfig) -> None:
    keep_of(config)([ROWS], "a", lambda: (torch.ones(4, 2), FACTS))
    hasty = config.model_copy(update={"peer_timeout_s": 0})
    with pytest.raises(ValueError, match="expected the same tables on all nodes"):
        keep_of(hasty, 1)([ROWS, ROWS], "a", never)


def test_a_folder_that_a_node_does_not_see_is_told(config: TrainConfig, tmp_path: Path) -> None:
    elsewhere = config.model_copy(update={"output": tmp_path / "elsewhere"})
    with pytest.raises(ValueError, match="expected one that all nodes share"):
        keep_of(elsewhere, 1)([ROWS], "a", never)


def test_other_rows_another_config_or_teacher_are_other_keys(config: TrainConfig, tmp_path: Path) -> None:
    keys = [
        told_key(config, [ROWS], "a"),
        told_key(config.model_copy(update={"seed": 7}), [ROWS], "a"),
        told_key(config, [ROWS], "b"),
        told_key(config, [ROWS, ROWS], "a"),
        told_key(config, [dataclasses.replace(ROWS, labels=LABELS.flip(0))], "a"),
        told_key(config, [dataclasses.replace(ROWS, texts=("a", "b", "d", "c"))], "a"),
        told_key(config, [dataclasses.replace(ROWS, student={"ids": torch.tensor([0, 1, 3, 2])})], "a"),
    ]
    assert len(set(keys)) == len(keys)
    more_workers = config.model_copy(update={"num_workers": 2, "output": tmp_path})
    assert told_key(more_workers, [ROWS], "a") == keys[0]


@pytest.mark.parametrize("source", ["probe", "lessons"])
def test_a_run_that_finds_what_it_is_told_asks_the_teacher_nothing(
    labelled: Path, unlabelled: Path, row_server: ToyServer, config: TrainConfig, source: str
) -> None:
    def run(rank: int) -> StudentRun:
        return rows_run(
            labelled,
            unlabelled,
            row_server.address,
            losses={
                "task": 0.5,
                "kd": 1.0,
                "kd_source": source,
                "hint": 0.1,
            },  # so the conversation stays open
            lessons={"reading": "add", "codec": {"message_dim": 8, "message_len": 1}, "epochs": 2},
            world={"keep": keep_of(config, rank)},
        )

    first, second, resumed = runs = [run(rank) for rank in (0, 1, 0)]
    assert [_num_turns(each) > 0 for each in runs] == [True, False, False]
    told = [all_rows(each).told for each in runs]
    assert told[0] is not None
    assert told[0].shape == (32, 2)
    assert all(each is not None and torch.equal(each, told[0]) for each in told)
    losses = [next(each.train_epoch()) for each in (first, resumed)]
    assert losses[0] == losses[1]
    assert first.finish()["probe"] == second.finish()["probe"] == resumed.finish()["probe"]
    for each in runs:
        each.close()


def _num_turns(run: StudentRun) -> int:
    assert run.objective.talk is not None
    return int(cost_facts(run.objective.talk.conversation)["num_turns"])
