"""Does a student learn the same whatever breaks?

    python -m benchmarks.chaos [--seed 0] [--faults 0]

Three tenants' students train against two replicas on Ray Serve, under TLS and with tokens, through proxies
that break the network on command: first in the calm, then in a storm. Replicas, Serve's controller, its
proxy, the directory and students are killed with SIGKILL; the network cuts, resets, delays, stalls, goes
dark, refuses, repeats and garbles: before a message, between reply and gradients, while gradients or a codec
are on their way. Prints a table and, as its last line, one JSON object; exits with 1 if a turn was lost, a
step was done twice or with another loss, or a weight is not what it was without the storm.

A fault's recovery is the time until every student that had turns to do had an answer again. It is over after
eight minutes in any case, with what is known until then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.chaos_service import chaos_service
from benchmarks.chaos_storm import REPLICAS, STEPS_A_ROUND, MissedError, Storm, script
from benchmarks.chaos_students import Clock, StudentLostError, TimeIsUpError, students_of
from benchmarks.ddp import worst_difference
from benchmarks.watchdog import ended_after

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.chaos_storm import Blow, Wound

__all__ = ["TENANTS", "Outcome", "main", "run"]

TENANTS = ("search", "support", "billing")
_TOTAL_S = 450.0  # what is left of eight minutes is for Ray to end
_HARD_END_S = 480.0
_CALM_TIMEOUT_S = 120.0
_WHOLE_TIMEOUT_S = 60.0
_MAX_DIFFERENCE = 1e-5
_TURNS_A_STEP = 2  # a reply and gradients


@dataclass
class Outcome:
    """What came of the storm.

    Attributes:
        planned: faults that were to strike.
        wounds: those that did, and were got over.
        turns_lost: turns without an answer.
        duplicated_effects: steps that were done twice, or with another loss than in the calm.
        max_difference: of a weight, relative.
        came_back: whether everything that was killed is there again.
        problem: what ended it early; empty: nothing.
    """

    planned: int
    wounds: list[Wound] = field(default_factory=list)
    turns_lost: int = 0
    duplicated_effects: int = 0
    max_difference: float = 0.0
    came_back: bool = False
    problem: str = ""

    def add(self, got: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
        """Compares what the students saved in the storm with what they saved in the calm."""
        num_steps = STEPS_A_ROUND * len(self.wounds)
        for ours, theirs in zip(got, expected, strict=True):
            done = ours["losses"]
            self.turns_lost += _TURNS_A_STEP * max(num_steps - len(done), 0)
            self.duplicated_effects += sum(a != b for a, b in zip(done, theirs["losses"], strict=False))
            self.duplicated_effects += _steps_of(ours) - len(done)
            if len(done) == len(theirs["losses"]):
                difference = worst_difference(ours["weights"], theirs["weights"])
                self.max_difference = max(self.max_difference, difference)

    def quantile_s(self, percent: int, kinds: Sequence[str] = ()) -> float:
        """Returns so many percent's quantile of the recoveries from some kinds of faults, all by default."""
        times = sorted(each.recovery_s for each in self.wounds if not kinds or each.blow.kind in kinds)
        if len(times) < 2:
            return times[0] if times else 0.0
        return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]

    @property
    def is_good(self) -> bool:
        """Whether every promise was kept."""
        nothing_lost = not (self.turns_lost or self.duplicated_effects or self.problem)
        return nothing_lost and self.came_back and self.max_difference <= _MAX_DIFFERENCE

    def facts(self) -> dict[str, Any]:
        """Returns the numbers for programs."""
        return {
            "faults": len(self.wounds),
            "turns_lost": self.turns_lost,
            "duplicated_effects": self.duplicated_effects,
            "max_rel_weight_diff": self.max_difference,
            "recovery_p50_s": round(self.quantile_s(50), 3),
            "recovery_p95_s": round(self.quantile_s(95), 3),
        }


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the order of the faults (default: 0)")
    parser.add_argument("--faults", type=int, default=0, help="only the first so many (default: 0, all)")
    options = parser.parse_args()
    blows = script(options.seed, len(TENANTS))
    blows = blows[: options.faults] if options.faults else blows
    with ended_after(_HARD_END_S), tempfile.TemporaryDirectory() as name:
        outcome = run(Path(name), blows, Clock(_TOTAL_S))
    _print(outcome)
    print(json.dumps(outcome.facts()), flush=True)
    return 0 if outcome.is_good else 1


def run(folder: Path, blows: Sequence[Blow], clock: Clock) -> Outcome:
    """Trains in the calm and in the storm, and compares."""
    outcome, num_steps = Outcome(len(blows)), STEPS_A_ROUND * len(blows)
    with chaos_service(folder, TENANTS) as service:
        try:
            with students_of(service, folder / "calm", clock, TENANTS) as students:
                _tell(f"{num_steps} steps in the calm")
                for student in students:
                    student.grant(num_steps)
                for student in students:
                    student.await_step(num_steps, _CALM_TIMEOUT_S)
            expected = [student.result() for student in students]
            _tell(f"{len(blows)} faults")
            with students_of(service, folder / "storm", clock, TENANTS) as students:
                try:
                    Storm(service, students, clock).run(blows, outcome.wounds)
                finally:
                    outcome.add([student.result() for student in students], expected)
            outcome.came_back = service.await_whole(clock.at_most(_WHOLE_TIMEOUT_S))
        except StudentLostError as error:
            outcome.problem = str(error)
            outcome.turns_lost += 1
        except MissedError as error:
            outcome.problem = str(error)
        except TimeIsUpError:
            outcome.problem = f"time was up after {len(outcome.wounds)} faults"
    return outcome


def _steps_of(saved: dict[str, Any]) -> int:
    """Returns the steps that the optimizer says it has done."""
    return max(int(state["step"]) for state in saved["optimizer"]["state"].values())


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _print(outcome: Outcome) -> None:
    table = Table(title=f"{len(outcome.wounds)} of {outcome.planned} faults, {len(TENANTS)} students")
    for column in ("fault", "times", "recovery p50, s", "p95, s", "longest, s"):
        table.add_column(column, justify="right" if column != "fault" else "left")
    kinds = sorted({each.blow.kind for each in outcome.wounds})
    for kind in kinds:
        _add_row(table, outcome, kind, [kind])
    table.add_section()
    _add_row(table, outcome, "loss of one or all replicas", REPLICAS)
    _add_row(table, outcome, "all", kinds)
    console = Console()
    console.print(table)
    console.print(f"turns lost {outcome.turns_lost}, duplicated effects {outcome.duplicated_effects}")
    console.print(f"largest relative difference of a weight {outcome.max_difference:.1e}")
    if not outcome.came_back:
        console.print("not everything that was killed came back")
    if outcome.problem:
        console.print(outcome.problem, markup=False)


def _add_row(table: Table, outcome: Outcome, name: str, kinds: Sequence[str]) -> None:
    times = [each.recovery_s for each in outcome.wounds if each.blow.kind in kinds]
    quantiles = [f"{outcome.quantile_s(percent, kinds):.2f}" for percent in (50, 95)]
    table.add_row(name, str(len(times)), *quantiles, f"{max(times, default=0.0):.2f}")


if __name__ == "__main__":
    sys.exit(main())
