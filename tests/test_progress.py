"""What a run says while it waits: in its workers' files, on the terminal, and as advice."""

from __future__ import annotations

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from rich.console import Console
from rich.progress import Progress, TextColumn

from student_client.activity import Activity, forget_activities, longest_activity, told_in
from student_client.advice import WaitingAdvice
from student_client.config import TalkConfig
from student_client.progress import RunProgress
from student_client.records import METRICS_FILE, read_metrics
from student_client.run import StudentRun
from student_client.times import StepTimes, WaitingTimes
from student_client.times_table import times_table
from student_client.train import _tell_doing
from student_client.train_worker import _Watch
from tests.test_train_run import make_config, row_server, table
from tests.toy import STUDENT_DIM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from student_client import TeacherTalk
    from tests.toy_server import ToyServer

__all__ = ["row_server", "table"]

PATIENCE_S = 30.0
ADDRESS = "preceptor://127.0.0.1:41500"


def _lap(num_steps: int = 10, step_s: float = 1.0, **waiting: float) -> StepTimes:
    """Steps that took a second each, of which they waited so long."""
    parts = {name: num_steps * seconds for name, seconds in waiting.items()}
    return StepTimes(num_steps, num_steps * step_s, WaitingTimes(**parts))


def _eventually(condition: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("waiting", "talk", "told", "not_told"),
    [
        ({"queue_s": 0.6}, {}, f"preceptor status {ADDRESS}", "int8"),
        ({"wire_s": 0.6}, {}, "compression int8", "replicas"),
        ({"wire_s": 0.6}, {"compression": "int8", "micro_batch_size": 4}, "region", "int8"),
        ({"teacher_s": 0.6, "queue_s": 0.3}, {"num_rounds": 2}, "the 2 rounds", "replicas"),
    ],
)
def test_advice_fits_what_most_of_the_waiting_is(
    waiting: dict[str, float], talk: dict[str, Any], told: str, not_told: str
) -> None:
    advice = WaitingAdvice(ADDRESS, TalkConfig.model_validate(talk))
    assert advice.after(_lap(19, **waiting)) is None  # too few to say
    text = advice.after(_lap(1, **waiting))
    assert text is not None
    assert f"{sum(waiting.values()):.0%} of the last 20 steps" in text
    assert told in text
    assert not_told not in text


def test_advice_is_given_once_and_again_when_it_gets_twice_as_bad() -> None:
    advice = WaitingAdvice(ADDRESS, TalkConfig())
    laps = [
        _lap(20, queue_s=0.5),  # half of it is no more than half
        _lap(20, queue_s=0.6),
        _lap(20, queue_s=0.9),
        _lap(20, step_s=2.0, queue_s=1.2),
        _lap(20, step_s=2.0, queue_s=1.2),
        _lap(10, step_s=9.0, queue_s=8.0),  # the steps before it count, too
    ]
    assert [advice.after(lap) is not None for lap in laps] == [False, True, False, True, False, True]


def test_a_runs_metrics_hold_the_split_and_the_advice(table: Path, row_server: ToyServer) -> None:
    run = StudentRun(make_config(table, row_server.address, losses={"interact": 1.0}))
    watch = _Watch(run, [])
    losses = [{"loss": 1.0}]
    watch.steps(losses, 8.0, _lap(20, wire_s=0.25))
    watch.steps(losses, 8.0, _lap(20, wire_s=0.75))
    lines = read_metrics(run.config.folder / METRICS_FILE)
    assert [line["kind"] for line in lines] == ["steps", "steps", "advice"]
    assert lines[1]["step_times"] == {
        "step_s": 1.0,
        "student_s": 0.25,
        "wire_s": 0.75,
        "queue_s": 0.0,
        "teacher_s": 0.0,
    }
    assert "compression int8" in lines[2]["message"]
    run.close()


def test_a_run_says_what_it_is_at_while_it_is_built(table: Path, row_server: ToyServer) -> None:
    told: list[str] = []

    class Listening(Activity):
        def now(self, text: str) -> Any:
            told.append(text)
            return super().now(text)

    config = make_config(table, row_server.address, losses={"interact": 1.0})
    run = StudentRun(config, activity=Listening())
    list(run.train_epoch())
    run.close()
    assert told[:2] == ["reading data", f"connecting to {row_server.address}"]
    assert told[2:] == [*["reading data"] * 4, "evaluating the student"]  # three batches, and the end


def test_the_latest_activity_that_goes_on_is_told() -> None:
    activity = Activity(lambda: ("waiting for the teacher", 7.0))
    assert activity.latest == ("waiting for the teacher", 7.0)
    with activity.now("outer"):
        with activity.now("inner"):
            assert activity.latest[0] == "inner"
        assert activity.latest[0] == "outer"
    lingering = Activity(lingers_s=PATIENCE_S)
    with lingering.now("no room"):
        pass
    assert lingering.latest[0] == "no room"
    assert list(activity.over("reading", [1, 2])) == [1, 2]
    assert activity.latest == ("waiting for the teacher", 7.0)


def test_a_workers_file_says_that_it_waits_and_that_it_reconnects(
    tmp_path: Path, start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address)
    states = torch.randn(2, 4, STUDENT_DIM)
    talk(states)
    lines: list[dict[str, Any]] = []
    (tmp_path / "doing-3.json").write_text(json.dumps({"worker": 3, "text": "old", "since_s": 1.0}))
    forget_activities(tmp_path)
    with ThreadPoolExecutor(1) as pool, told_in(tmp_path, 3, lambda: talk.conversation.waits_for):
        server.queue.gate.clear()
        held = pool.submit(talk, states)
        found = _eventually(lambda: longest_activity(tmp_path))
        assert (found["worker"], found["text"]) == (3, "waiting for the teacher")
        told = _tell_doing(tmp_path, "", lines.append)
        server.kill()
        again = _eventually(
            lambda: (longest_activity(tmp_path) or found)["text"] != told and _found(tmp_path)
        )
        assert again["text"].startswith("reconnecting to 127.0.0.1:")
        assert "Socket closed" in again["text"] or "UNAVAILABLE" in again["text"]
        server.start()
        server.queue.gate.set()
        held.result(60)
        _eventually(lambda: longest_activity(tmp_path) is None)
        _tell_doing(tmp_path, told, lines.append)
    assert [line["text"] for line in lines] == ["waiting for the teacher", ""]
    assert lines[0]["seconds"] >= 1.0
    assert not list(tmp_path.iterdir())


def _found(folder: Path) -> dict[str, Any] | None:
    found = longest_activity(folder)
    return found if found is not None and "reconnecting" in found["text"] else None


def test_files_that_can_not_be_written_disturb_nobody(tmp_path: Path) -> None:
    with told_in(tmp_path / "missing", 0, lambda: ("reading data", 5.0)):
        time.sleep(0.5)
    assert longest_activity(tmp_path / "missing") is None


def test_the_bar_says_what_is_waited_for_until_it_gets_on() -> None:
    out = io.StringIO()
    progress = Progress(TextColumn("{task.fields[note]}", markup=False), console=Console(file=out, width=200))
    shown = RunProgress(progress, "run")

    def note() -> str:
        return str(progress.tasks[0].fields["note"])

    steps = {"kind": "steps", "step": 2, "num_steps": 8, "losses": {"loss": 1.0}, "examples_per_s": 9.0}
    shown.take({**steps, "waiting_share": 0.5})
    before = note()
    waiting = {"kind": "doing", "text": "no room at the teacher: [full]; again in 2.0 s", "worker": 1}
    for seconds in (3.2, 5.0):
        shown.take({**waiting, "seconds": seconds})
    assert note() == "worker 1: no room at the teacher: [full]; again in 2.0 s (5 s)"
    shown.take({"kind": "doing", "text": "", "worker": 0, "seconds": 0.0})
    assert note() == before == "loss 1.000, 9 examples/s, 50% waiting for the teacher"
    shown.take({"kind": "advice", "message": "most of it is the [queue]"})
    shown.take({"kind": "failed", "step": 2, "error": "OSError: [full]"})
    assert out.getvalue().splitlines() == [  # no terminal: told once
        "no room at the teacher: [full]; again in 2.0 s",
        "warning: most of it is the [queue]",
        "a worker failed at step 2: OSError: [full]",
    ]


def test_the_table_of_times_has_all_parts_and_their_sum() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(times_table(_lap(10, wire_s=0.25, queue_s=0.5).of_one()))
    rows = [line.strip("│ ").replace("│", "").split() for line in out.getvalue().splitlines() if "%" in line]
    assert [row[-2:] for row in rows] == [
        ["250.0", "25%"],
        ["250.0", "25%"],
        ["500.0", "50%"],
        ["0.0", "0%"],
        ["1000.0", "100%"],
    ]
