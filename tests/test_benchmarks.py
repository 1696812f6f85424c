"""What the benchmarks compute of what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.load_offer import Tally, due_times
from benchmarks.load_report import Outcome
from benchmarks.memory import Memory
from benchmarks.pairs import SIZES, PairCost, Round, num_pairs_for, tensors_of
from benchmarks.signals_found import is_whole
from benchmarks.tenants_fairness import Fairness, jain_index, p99
from benchmarks.tenants_throughput import Cell, Measurements
from preceptor.v1 import teacher_pb2 as pb

ROOT = Path(__file__).parents[1]


def _cost(
    latency_s: float = 0.1, *, retained: bool = True, num_tenants: tuple[int, int] = (1, 1)
) -> PairCost:
    return PairCost(latency_s, 16, retained, num_tenants)


def test_jains_index_is_1_for_equals_and_1_over_n_for_one_winner() -> None:
    assert jain_index([5, 5, 5, 5]) == 1.0
    assert jain_index([7, 0, 0, 0]) == 0.25


def test_p99_lies_between_the_two_largest_of_a_hundred() -> None:
    assert 98.0 < p99([float(value) for value in range(100)]) < 99.0


def test_fairness_compares_the_slowest_pairs() -> None:
    fairness = Fairness([10, 10], 50, beside_heavy_s=[0.2] * 100, all_light_s=[0.1] * 100)
    assert fairness.p99_ratio == pytest.approx(2.0)
    assert fairness.heavy_share == 5.0


def test_a_round_counts_the_pairs_of_all_conversations() -> None:
    done = Round(2.0, [[_cost(), _cost()], [_cost()]])
    assert done.pairs_per_s == 1.5
    assert len(done.all_costs) == 3


@pytest.mark.parametrize(("rate", "expected"), [(100.0, 12), (0.1, 1)])
def test_a_round_has_at_least_one_pair_a_tenant(rate: float, expected: int) -> None:
    assert num_pairs_for(2.0, rate, 16) == expected


def test_measurements_give_medians_ratios_and_shares() -> None:
    cell, measured = Cell(16, "small"), Measurements()
    measured.rates["ours"][cell] = [40.0, 44.0, 1.0]
    measured.rates["serial"][cell] = [10.0, 11.0, 9.0]
    measured.costs[cell] = [_cost(num_tenants=(16, 8)), _cost(retained=False, num_tenants=(8, 8))]
    assert measured.ratio(cell) == pytest.approx(4.0)
    assert measured.retained_share(cell) == 0.5
    assert measured.mean_num_tenants(cell) == (12.0, 8.0)


def test_what_was_not_measured_is_none() -> None:
    cell, measured = Cell(64, "large"), Measurements()
    assert measured.pairs_per_s("dedicated", cell) is None
    assert measured.ratio(cell) is None
    assert measured.retained_share(cell) is None


def test_memory_compares_what_teachers_add() -> None:
    assert Memory(tenants=100, dedicated=900, ours=300).ratio == 4.0


def test_sizes_are_those_that_are_published() -> None:
    shapes = {name: tuple(tensors_of(size, 0)[0].shape) for name, size in SIZES.items()}
    assert shapes == {"small": (8, 1, 32), "medium": (8, 4, 32), "large": (32, 64, 32)}


def _refusal(retry_after_ms: int) -> pb.ConverseResponse:
    return pb.ConverseResponse(
        failed=pb.Failed(turn=1, reason=pb.REASON_OVERLOADED, retry_after_ms=retry_after_ms)
    )


def test_a_turn_is_accepted_unless_it_is_refused_and_must_then_be_answered() -> None:
    tally = Tally()
    assert tally.take("exchange", _refusal(250)) == 0.25
    assert tally.take("exchange", pb.ConverseResponse(reply=pb.Reply(turn=1))) is None
    assert Outcome(1.0, 1.0, {"a": tally}, [], 0, 0.0).is_honest
    assert (tally.accepted, tally.answered, tally.refused) == (1, 1, 1)
    tally.take("backward", None)  # no answer came
    assert (tally.accepted, tally.answered) == (2, 1)
    assert not Outcome(1.0, 1.0, {"a": tally}, [], 0, 0.0).is_honest


@pytest.mark.parametrize(
    "answer",
    [
        _refusal(0),
        pb.ConverseResponse(failed=pb.Failed(turn=1, reason=pb.REASON_INTERNAL)),
        pb.ConverseResponse(gradients=pb.Gradients(turn=1, complete=True)),
    ],
    ids=["no time to come back", "another reason", "the answer to something else"],
)
def test_anything_but_an_answer_or_a_time_to_come_back_is_not_honest(answer: pb.ConverseResponse) -> None:
    tally = Tally()
    assert tally.take("exchange", answer) == 0
    outcome = Outcome(1.0, 1.0, {"a": tally, "b": Tally()}, [], 0, 0.0)
    assert not outcome.is_honest
    assert outcome.json()["accepted"] == outcome.json()["answered"] == 0


def test_pairs_are_due_in_order_at_about_the_rate_and_within_the_run() -> None:
    times = due_times(100.0, 50.0, seed=1)
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 50
    assert 4500 < len(times) < 5500


@pytest.mark.weights
def test_a_teacher_is_honest_at_twice_its_capacity() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.load",
            "--seconds",
            "4",
            "--conversations",
            "16",
            "--tenants",
            "2",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["accepted"] == found["answered"] > 0
    assert found["refused"] == found["refused_with_retry_after"]
    assert found["other_errors"] == 0
    assert "Traceback" not in done.stderr


def _span(name: str, number: int, parent: int | None, trace: int = 1) -> dict[str, object]:
    return {
        "name": f"preceptor.{name}",
        "context": {"trace_id": hex(trace), "span_id": hex(number)},
        "parent_id": None if parent is None else hex(parent),
    }


def test_a_step_is_whole_when_each_turn_has_its_spans_in_its_trace() -> None:
    step = _span("step", 1, None)
    names = ["exchange", "turn", "queue", "batch", "compute"]
    spans = [step, *(_span(name, 2 + at, [1, 2, 3, 3, 5][at]) for at, name in enumerate(names))]
    assert is_whole(step, spans)
    assert not is_whole(step, [step])
    for lacking in spans[1:]:
        assert not is_whole(step, [span for span in spans if span is not lacking])
    assert not is_whole(step, [*spans, _span("observe", 9, 1)])
    assert not is_whole(step, [*spans[:-1], _span("compute", 6, 5, trace=2)])
