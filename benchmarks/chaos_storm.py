"""The storm of `benchmarks.chaos`: what is broken, when, and how long it took the students to get over it.

A round is three steps of every student and one fault. In the second step one of them, the victim, is held at
some point; the fault strikes; then all have to do their steps.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from benchmarks.chaos_service import NUM_REPLICAS, PROCESSES
from benchmarks.faults import Direction, Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.chaos_service import ChaosService
    from benchmarks.chaos_students import Clock, Student
    from benchmarks.fault_proxy import FaultProxy

__all__ = ["REPLICAS", "STEPS_A_ROUND", "Blow", "MissedError", "Storm", "Wound", "script"]

REPLICAS = ("replica", "all replicas")  # the kinds that cost a student its replica
STEPS_A_ROUND = 3
_HELD_TIMEOUT_S = 60.0
_STEPS_TIMEOUT_S = 90.0
_WHOLE_TIMEOUT_S = 60.0
_STRUCK_TIMEOUT_S = 20.0
_DARK_S = 1.5
_MIDST_BYTES = 40_000  # of a codec's update, or of its gradients, which are larger
_POLL_S = 0.01

# Where a step is held for a fault at a point: gradients and updates are broken while they are on their way.
_HOLDS = {"before": "before", "between": "between", "backward": "between", "update": "update"}


class MissedError(Exception):
    """A fault hit nobody, or not all that it was meant for: nothing was got over."""


@dataclass(frozen=True)
class Blow:
    """One planned fault.

    Attributes:
        kind: a process of `PROCESSES`, "all replicas", "student", or a fault of the network.
        point: of the victim's step.
        victim: the number of the student that is watched.
    """

    kind: str
    point: str
    victim: int


@dataclass(frozen=True)
class Wound:
    """A fault that has struck.

    Attributes:
        blow: as it was planned.
        recovery_s: until all students who had turns to do had an answer again.
    """

    blow: Blow
    recovery_s: float


def script(seed: int, num_students: int) -> list[Blow]:
    """Returns the storm: the same kinds and points for every seed, in another order and for other victims."""
    points = tuple(_HOLDS)
    pairs = [("replica", point) for point in points] * 2
    pairs += [("all replicas", point) for point in points[:2]]
    pairs += [(fault, point) for fault in (Fault.CUT, Fault.RESET, Fault.STALL) for point in points]
    pairs += [(fault, point) for fault in (Fault.DUPLICATE, Fault.TRUNCATE) for point in points[1:]]
    pairs += [(fault, point) for fault in (Fault.DELAY, Fault.BLACKOUT, Fault.REFUSE) for point in points[:2]]
    pairs += [(kind, point) for kind in (*PROCESSES, "student") if kind != "replica" for point in points[:2]]
    rng = random.Random(seed)
    rng.shuffle(pairs)
    return [Blow(kind, point, rng.randrange(num_students)) for kind, point in pairs]


class Storm:
    """Breaks things while students train.

    Args:
        service: what they talk to.
        students: started.
        clock: of the whole run.
    """

    def __init__(self, service: ChaosService, students: Sequence[Student], clock: Clock) -> None:
        self._service = service
        self._students = students
        self._clock = clock

    def run(self, blows: Sequence[Blow], wounds: list[Wound]) -> None:
        """Strikes one after another and appends what came of each.

        Raises:
            MissedError: one did not strike.
            StudentLostError: a student did not get over it.
            TimeIsUpError: there was no time for all.
        """
        for number, blow in enumerate(blows):
            wound = Wound(blow, self._round(number, blow))
            print(
                f"{number + 1:3} {blow.kind:12} {blow.point:9} {self._students[blow.victim].name:8} "
                f"{wound.recovery_s:6.2f} s",
                file=sys.stderr,
                flush=True,
            )
            wounds.append(wound)

    def _round(self, number: int, blow: Blow) -> float:
        victim = self._students[blow.victim]
        first, until = number * STEPS_A_ROUND, (number + 1) * STEPS_A_ROUND
        if blow.kind in (*PROCESSES, *REPLICAS):  # from those that are there
            self._await_whole()
        for student in self._students:
            is_victim = student is victim
            student.grant(until, hold=(first + 1, _HOLDS[blow.point]) if is_victim else None)
        target = victim.await_held(_HELD_TIMEOUT_S)
        struck_s = self._strike(blow, victim, target, until)
        for student in self._students:
            student.await_step(until, _STEPS_TIMEOUT_S)
        self._service.heal()
        later = [[each for each in student.answers_s if each > struck_s] for student in self._students]
        return max(min(answers) - struck_s for answers in later if answers)

    def _await_whole(self) -> None:
        timeout_s = self._clock.at_most(_WHOLE_TIMEOUT_S)
        if not self._service.await_whole(timeout_s):
            self._clock.at_most(timeout_s)  # or there was no time
            raise MissedError(f"not everything that was killed was back after {timeout_s:g} s")

    def _strike(self, blow: Blow, victim: Student, target: str, until: int) -> float:
        """Breaks what is to be broken, lets the victim go on, and returns when it broke."""
        if blow.kind == "replica":
            return self._kill_replica(blow, victim, target)
        if blow.kind == "student":
            victim.kill()
            struck_s = time.monotonic()
            victim.start()
            victim.grant(until)
            return struck_s
        if blow.kind in (*PROCESSES, "all replicas"):
            return self._kill_all(blow, victim)
        return self._break_network(blow, victim, self._service.proxy_at(target))

    def _kill_all(self, blow: Blow, victim: Student) -> float:
        kind = "replica" if blow.kind == "all replicas" else blow.kind
        num_hit = sum(_send(process, signal.SIGKILL) for process in self._service.processes(kind))
        struck_s = time.monotonic()
        victim.go_on()
        expected = NUM_REPLICAS if kind == "replica" else 1
        if num_hit < expected:
            raise MissedError(f"{blow.kind} {blow.point}: got {num_hit} processes, expected {expected}")
        return struck_s

    def _kill_replica(self, blow: Blow, victim: Student, target: str) -> float:
        replica, proxy = self._service.replica_at(target), self._service.proxy_at(target)
        if replica is None:
            raise MissedError(f"{target}: got nobody behind it, expected the replica of {victim.name}")
        if blow.point in ("before", "between"):
            is_hit = _send(replica, signal.SIGKILL)
            struck_s = time.monotonic()
            victim.go_on()
            return _checked(struck_s, blow, is_hit=is_hit)
        # It takes what is sent, and will never answer.
        _send(replica, signal.SIGSTOP)
        carried = proxy.carried[Direction.TO_TEACHER]
        victim.go_on()
        deadline_s = time.monotonic() + self._clock.at_most(_STRUCK_TIMEOUT_S)
        while not (is_midst := proxy.carried[Direction.TO_TEACHER] > carried):
            if time.monotonic() > deadline_s:
                break
            time.sleep(_POLL_S)
        is_hit = _send(replica, signal.SIGKILL)
        return _checked(time.monotonic(), blow, is_hit=is_hit and is_midst)

    def _break_network(self, blow: Blow, victim: Student, proxy: FaultProxy) -> float:
        fault = Fault(blow.kind)
        if blow.point in ("backward", "update"):
            direction = Direction.TO_STUDENT if blow.point == "backward" else Direction.TO_TEACHER
            strike = proxy.strike(fault, direction, after_bytes=_MIDST_BYTES)
            victim.go_on()
        elif fault is Fault.BLACKOUT:
            strike = proxy.strike(fault)
            victim.go_on()
            time.sleep(_DARK_S)
            proxy.heal()
        else:
            strike = proxy.strike(fault, Direction.TO_STUDENT)
            if fault is Fault.REFUSE:
                proxy.strike(Fault.RESET)
            victim.go_on()
        strike.wait(self._clock.at_most(_STRUCK_TIMEOUT_S))
        return _checked(strike.struck_s, blow)


def _checked(struck_s: float | None, blow: Blow, *, is_hit: bool = True) -> float:
    """Returns when a fault struck.

    Raises:
        MissedError: it did not.
    """
    if struck_s is None or not is_hit:
        raise MissedError(f"{blow.kind} {blow.point}: did not strike")
    return struck_s


def _send(process: psutil.Process, number: signal.Signals) -> bool:
    """Returns whether the process was there."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True
