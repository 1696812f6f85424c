"""Does a student notice that its teacher is upgraded?

    python -m benchmarks.rolling

Four students train, a step each 0.3 s at most, against two replicas on Ray Serve. Meanwhile the service gets
another config, and then another version of the teacher's code with the same weights: each time Serve starts
new replicas, and the old ones ask their students to move and drain. Then the same students do the same number
of steps with nothing changed. Everything is deterministic, so the weights must be the same. Prints a table
and, as its last line, one JSON object; exits with 1 if a turn was lost or a weight differs, or if nothing
was upgraded: all replicas have to be other processes than before, and all students to have moved. It is over
after eight minutes in any case.
"""

from __future__ import annotations

import itertools
import json
import operator
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.chaos_service import NUM_REPLICAS, chaos_service
from benchmarks.chaos_students import Clock, Student, StudentLostError, TimeIsUpError, students_of
from benchmarks.ddp import worst_difference
from benchmarks.watchdog import ended_after

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.chaos_service import ChaosService
    from services.teacher.config import ServiceConfig

_TENANTS = ("search", "support", "billing", "sales")
_TOTAL_S = 450.0
_HARD_END_S = 480.0
_DEPLOY_TIMEOUT_S = 120.0
_STEP_S = 0.3
_BEFORE_S, _AFTER_S = 5.0, 10.0
_STEP_TIMEOUT_S = 60.0
_CALM_TIMEOUT_S = 180.0
_MAX_DIFFERENCE = 1e-5
_TURNS_A_STEP = 2
_NEW_CODE = '''"""The next version of the teacher's code."""

from benchmarks.toy_teacher import Attention as OldAttention


class Attention(OldAttention):
    """Computes what it always did."""
'''


@dataclass
class _Upgrade:
    """A change of the service, and what the students noticed of it.

    Attributes:
        name: what was changed.
        begin_s: when, on `time.monotonic`.
        end_s: when the new replicas were there and the old ones were gone, or that was given up.
        is_done: whether they were.
        num_moved: students who have opened another conversation since.
    """

    name: str
    begin_s: float
    end_s: float
    is_done: bool
    num_moved: int = 0

    def longest_pause_s(self, students: Sequence[Student]) -> float:
        """Returns the longest time between two answers of a student, from its beginning to a while after."""
        pauses = [0.0]
        for student in students:
            pauses += [
                after_s - before_s
                for before_s, after_s in itertools.pairwise(student.answers_s)
                if self.begin_s <= after_s and before_s <= self.end_s + _AFTER_S
            ]
        return max(pauses)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    with ended_after(_HARD_END_S), tempfile.TemporaryDirectory() as name:
        return _run(Path(name), Clock(_TOTAL_S))


def _run(folder: Path, clock: Clock) -> int:
    upgrades: list[_Upgrade] = []
    with chaos_service(folder, _TENANTS) as service:
        with students_of(service, folder / "rolling", clock, _TENANTS) as students:
            _do_steps(students, 1)  # what they take to start is no pause
            pacer = _Pacer(students)
            pacer.start()
            for what, config in _changes(service.config, folder):
                time.sleep(_BEFORE_S)
                before = [student.num_reconnects for student in students]
                upgrades.append(upgrade := _upgrade(service, what, config))
                time.sleep(_AFTER_S)
                after = [student.num_reconnects for student in students]
                upgrade.num_moved = sum(map(operator.gt, after, before))
            num_steps = pacer.stop()
        got = [student.result() for student in students]
        pauses = {upgrade.name: upgrade.longest_pause_s(students) for upgrade in upgrades}
        _tell(f"{num_steps} steps without an upgrade")
        with students_of(service, folder / "calm", clock, _TENANTS) as calm:
            _do_steps(calm, num_steps)
        expected = [student.result() for student in calm]
    lost = pacer.num_lost + sum(_TURNS_A_STEP * max(num_steps - len(each["losses"]), 0) for each in got)
    difference = max(
        worst_difference(ours["weights"], theirs["weights"])
        for ours, theirs in zip(got, expected, strict=True)
    )
    return _report(upgrades, pauses, num_steps, lost, difference)


def _do_steps(students: Sequence[Student], until: int) -> None:
    for student in students:
        student.grant(until)
    for student in students:
        student.await_step(until, _CALM_TIMEOUT_S)


def _changes(config: ServiceConfig, folder: Path) -> list[tuple[str, ServiceConfig]]:
    """Returns the service's config with other settings, and that with other code too."""
    engine = config.engine.model_copy(update={"max_batch_tokens": 1024, "max_wait_ms": 50.0})
    limits = config.limits.model_copy(update={"max_idle_s": 300.0})
    settings = config.model_copy(update={"engine": engine, "limits": limits})
    code = folder / "new_code"
    code.mkdir()
    (code / "attention_v2.py").write_text(_NEW_CODE)
    model = config.model.model_copy(update={"factory": "attention_v2:Attention"})
    newer = settings.model_copy(update={"model": model, "python_path": (*config.python_path, code)})
    return [("another config", settings), ("other code", newer)]


def _upgrade(service: ChaosService, what: str, config: ServiceConfig) -> _Upgrade:
    _tell(what)
    old = service.processes("replica")
    begin_s = time.monotonic()
    _deploy(config)
    is_done = len(old) >= NUM_REPLICAS and service.await_replaced(old, _DEPLOY_TIMEOUT_S)
    return _Upgrade(what, begin_s, time.monotonic(), is_done)


def _deploy(config: ServiceConfig) -> None:
    from ray import serve

    from services.teacher.app import APP_NAME, build_app

    # `serve.run` would wait without end.
    target = serve.RunTarget(build_app(config), name=APP_NAME, route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


class _Pacer(threading.Thread):
    """Grants all students a step at a time, after their first one.

    Attributes:
        num_lost: turns without an answer.
    """

    def __init__(self, students: Sequence[Student]) -> None:
        super().__init__(daemon=True)
        self.num_lost = 0
        self._students = students
        self._stopped = threading.Event()
        self._num_steps = 1

    def run(self) -> None:
        while not self._stopped.wait(_STEP_S):
            self._num_steps += 1
            for student in self._students:
                student.grant(self._num_steps)
            for student in self._students:
                try:
                    student.await_step(self._num_steps, _STEP_TIMEOUT_S)
                except (StudentLostError, TimeIsUpError) as error:
                    _tell(f"{student.name}: {error or 'time was up'}")
                    self.num_lost += 1
                    return

    def stop(self) -> int:
        """Ends with the step that is under way; returns how many there were."""
        self._stopped.set()
        self.join(_STEP_TIMEOUT_S)
        return self._num_steps


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _report(
    upgrades: Sequence[_Upgrade], pauses: dict[str, float], num_steps: int, lost: int, difference: float
) -> int:
    table = Table(title=f"{num_steps} steps of {len(_TENANTS)} students")
    for column in ("upgrade", "took, s", "students moved", "longest pause of a student, s"):
        table.add_column(column, justify="left" if column == "upgrade" else "right")
    for upgrade in upgrades:
        took_s = upgrade.end_s - upgrade.begin_s
        num_moved, pause_s = upgrade.num_moved, pauses[upgrade.name]
        table.add_row(upgrade.name, f"{took_s:.1f}", str(num_moved), f"{pause_s:.2f}")
    console = Console()
    console.print(table)
    for upgrade in upgrades:
        if not upgrade.is_done:
            console.print(f"{upgrade.name}: the old replicas were still there, or no others")
    are_done = all(each.is_done and each.num_moved == len(_TENANTS) for each in upgrades)
    result: dict[str, Any] = {
        "upgrades": sum(each.is_done for each in upgrades),
        "students_moved": [each.num_moved for each in upgrades],
        "turns_lost": lost,
        "max_rel_weight_diff": difference,
        "longest_pause_s": round(max(pauses.values()), 3),
    }
    print(json.dumps(result))
    return 0 if are_done and not lost and difference <= _MAX_DIFFERENCE else 1


if __name__ == "__main__":
    sys.exit(main())
