"""docs/debug.md: what it says of refusals, ends and NaN is what happens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from preceptor.v1 import teacher_pb2 as pb
from services.teacher.visit import End
from student_client import InvalidMessageError, TeacherTalk
from student_client.objective import DivergedError
from student_client.run import StudentRun
from student_client.status import advice_on
from tests.charts import ROOT
from tests.test_train_run import make_config, row_server
from tests.toy import NUM_IDS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.toy_server import ToyServer

__all__ = ["row_server"]

PAGE = (ROOT / "docs" / "debug.md").read_text()


def chapter(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_it_has_every_reason_for_a_refusal() -> None:
    rows = [line.split("|")[1] for line in chapter("My run was refused").splitlines() if line[:1] == "|"]
    named = " ".join(rows).replace(",", " ").split()
    missing = {name.removeprefix("REASON_") for name, _ in pb.Reason.items()} - set(named)
    assert missing == {"UNSPECIFIED"}


def test_status_and_page_call_the_same_a_defect_of_the_client() -> None:
    defect = advice_on(pb.REASON_TURN_CONFLICT)
    (row,) = (line for line in chapter("My run was refused").splitlines() if defect in line)
    names = {f"REASON_{name}" for name in row.split("|")[1].replace(",", " ").split()}
    assert {name for name, number in pb.Reason.items() if advice_on(number) == defect} == names


def test_it_has_every_reason_why_a_conversation_ends() -> None:
    page = chapter("The teacher restarts")
    assert [end.value for end in End if f"`{end.value}`" not in page] == []


@pytest.mark.parametrize("losses", [{"task": 1.0}, {"task": 1.0, "interact": 1.0}, {"kd": 1.0}])
def test_a_run_that_diverges_ends_at_once_as_it_says(
    losses: dict[str, float], tmp_path: Path, row_server: ToyServer
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("ids,label\n" + "".join(f"{number % NUM_IDS},{number % 2}\n" for number in range(60)))
    optimizer = {"lr": 1e30}
    run = StudentRun(make_config(table, row_server.address, losses=losses, optimizer=optimizer))
    steps: list[float] = []
    with pytest.raises((DivergedError, InvalidMessageError)) as failed:
        steps.extend(step["loss"] for step in run.train_epoch())
    run.close()
    assert steps
    assert all(map(math.isfinite, steps))
    if isinstance(failed.value, InvalidMessageError):  # so far gone that the teacher hears of it first
        assert "interact" in losses
        assert f"InvalidMessageError: {failed.value}" in chapter("My loss is NaN")
        return
    begin, _, end = str(failed.value).partition("loss nan")
    assert f"DivergedError: {begin}loss nan" in chapter("My loss is NaN")
    assert end.rpartition(", ")[2] in chapter("My loss is NaN")


def test_states_that_are_nan_are_refused_as_it_says(row_server: ToyServer) -> None:
    talk = TeacherTalk.connect(
        row_server.address, student_dim=6, message_dim=4, message_len=1, reading="replace"
    )
    with pytest.raises(InvalidMessageError) as failed:
        talk(torch.full((2, 6), math.nan))
    talk.close()
    assert f"InvalidMessageError: {failed.value}" in chapter("My loss is NaN")


def test_gradients_that_are_nan_stay_with_the_student(row_server: ToyServer) -> None:
    talk = TeacherTalk.connect(
        row_server.address, student_dim=6, message_dim=4, message_len=1, reading="replace"
    )
    states = torch.randn(2, 6, requires_grad=True)
    (talk(states).decoded.sum() * math.nan).backward()
    assert states.grad is not None
    assert states.grad.isnan().all()
    assert all(each.grad is None or each.grad.isnan().all() for each in talk.parameters())
    talk(torch.randn(2, 6))  # nothing was refused
    talk.close()
