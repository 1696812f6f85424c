"""What rows are told is found out once: by the first worker, for all of them and for a resumed run."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch

from student_client.activity import Activity
from student_client.batches import Examples
from student_client.told_file import TOLD_FILE, ToldFile, told_key
from tests.test_train_run import make_config
from tests.toy_rows import all_rows, labelled, row_server, rows_run, unlabelled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from student_client.run import StudentRun
    from tests.toy_server import ToyServer

__all__ = ["labelled", "row_server", "unlabelled"]

FACTS: dict[str, Any] = {"probe": {"valid": 0.5}}


def never() -> tuple[Tensor, dict[str, Any]]:
    raise AssertionError("it was known already")


def test_what_was_found_out_is_found_again(tmp_path: Path) -> None:
    outputs = torch.randn(7, 3)
    first = ToldFile(tmp_path, 0, Activity())("key", lambda: (outputs, FACTS))
    again = ToldFile(tmp_path, 0, Activity())("key", never)
    for found, facts in (first, again):
        assert torch.equal(found, outputs)
        assert facts == FACTS
    other, _ = ToldFile(tmp_path, 0, Activity())("another", lambda: (outputs + 1, FACTS))
    assert torch.equal(other, outputs + 1)


def test_a_file_that_lost_a_part_is_found_out_anew(tmp_path: Path) -> None:
    keep = ToldFile(tmp_path, 0, Activity())
    keep("key", lambda: (torch.ones(9, 2), FACTS))
    path = tmp_path / TOLD_FILE
    path.write_bytes(path.read_bytes()[:-8])
    outputs, _ = keep("key", lambda: (torch.zeros(9, 2), FACTS))
    assert torch.equal(outputs, torch.zeros(9, 2))


def test_another_worker_waits_for_the_first_one_and_says_so(tmp_path: Path) -> None:
    activity, found = Activity(), []
    thread = threading.Thread(target=lambda: found.append(ToldFile(tmp_path, 1, activity)("key", never)))
    thread.start()
    while not activity.latest[0]:
        thread.join(0.01)
    assert activity.latest[0].startswith("waiting until the first worker")
    assert not found
    outputs = torch.randn(4, 2)
    ToldFile(tmp_path, 0, Activity())("key", lambda: (outputs, FACTS))
    thread.join(10)
    assert torch.equal(found[0][0], outputs)


def test_a_folder_that_a_node_does_not_see_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one that all nodes share"):
        ToldFile(tmp_path / "elsewhere", 1, Activity())("key", never)


def test_other_labels_another_config_or_teacher_are_other_keys(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("text,label\n")
    config, labels = make_config(table, None), torch.tensor([0, 1, 1])
    part = Examples({"ids": torch.arange(3)}, None, labels, ("ids",))
    keys = [
        told_key(config, [part], "a"),
        told_key(config.model_copy(update={"seed": 7}), [part], "a"),
        told_key(config, [part], "b"),
        told_key(config, [part, part], "a"),
        told_key(config, [dataclasses.replace(part, labels=labels.flip(0))], "a"),
    ]
    assert len(set(keys)) == len(keys)
    more_workers = config.model_copy(update={"num_workers": 2, "output": tmp_path})
    assert told_key(more_workers, [part], "a") == keys[0]


class _Counted(ToldFile):
    """Counts how often something is found out."""

    num_made = 0

    def __call__(
        self, key: str, make: Callable[[], tuple[Tensor, dict[str, Any]]]
    ) -> tuple[Tensor, dict[str, Any]]:
        def counted() -> tuple[Tensor, dict[str, Any]]:
            self.num_made += 1
            return make()

        return super().__call__(key, counted)


@pytest.mark.parametrize("source", ["probe", "lessons"])
def test_a_run_that_finds_what_it_is_told_asks_the_teacher_nothing(
    labelled: Path, unlabelled: Path, row_server: ToyServer, tmp_path: Path, source: str
) -> None:
    def run(keep: ToldFile) -> StudentRun:
        return rows_run(
            labelled,
            unlabelled,
            row_server.address,
            losses={"task": 0.5, "kd": 1.0, "kd_source": source},
            lessons={"reading": "add", "codec": {"message_dim": 8, "message_len": 1}, "epochs": 2},
            world={"keep": keep},
        )

    keeps = [_Counted(tmp_path, rank, Activity()) for rank in (0, 1, 0)]
    first, second, resumed = map(run, keeps)
    assert [keep.num_made for keep in keeps] == [1, 0, 0]
    told = [all_rows(each).told for each in (first, second, resumed)]
    assert told[0] is not None
    assert told[0].shape == (32, 2)
    assert all(each is not None and torch.equal(each, told[0]) for each in told)
    weights = [each.objective.student.state_dict() for each in (first, second)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert first.finish()["probe"] == resumed.finish()["probe"]
    for each in (first, second, resumed):
        each.close()
