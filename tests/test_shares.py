"""What a step computes does not depend on how its batch is shared out, and a run goes on in mid-epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from student_client.checkpoints import Checkpoints
from student_client.pace import Pace
from student_client.records import (
    METRICS_FILE,
    MetricsFile,
    config_digest,
    read_metrics,
    read_new_lines,
)
from student_client.run import StudentRun
from student_client.times import WaitingTimes
from tests.test_train_run import ALL_LOSSES, load, losses_of, make_config, row_server, save, table

if TYPE_CHECKING:
    from pathlib import Path

    from student_client.config import TrainConfig
    from tests.toy_server import ToyServer

__all__ = ["row_server", "table"]

SILENT = {
    "factory": "tests.toy_student:ToyStudent",
    "kwargs": {"dropout": 0.0},
    "lower": "blocks.0",
    "upper": "blocks.1",
    "num_classes_kwarg": "num_classes",
}
TALK = {"codec": {"message_dim": 4}, "reading": "replace", "deterministic": True}


def silent_config(table: Path, server: ToyServer, **changes: Any) -> TrainConfig:
    """A run without dropout, of batches of 13: the last one of an epoch is smaller and odd."""
    content = {"student": SILENT, "losses": ALL_LOSSES, "talk": TALK, "batch_size": 13, **changes}
    return make_config(table, server.address, **content)


def weights_of(run: StudentRun) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.objective.named_parameters()}


@pytest.mark.parametrize("accumulate", [2, 5, 20])
def test_a_batch_in_parts_teaches_what_it_teaches_in_one(
    table: Path, row_server: ToyServer, accumulate: int
) -> None:
    whole = StudentRun(silent_config(table, row_server))
    parts = StudentRun(silent_config(table, row_server, accumulate=accumulate))
    assert losses_of(parts) == pytest.approx(losses_of(whole), rel=1e-4)
    for name, expected in weights_of(whole).items():
        torch.testing.assert_close(weights_of(parts)[name], expected, rtol=1e-4, atol=1e-5)
    whole.close()
    parts.close()


# The last batch: 48 = 3 x 13 + 9 examples, so one worker has 5 and the other 4; 48 = 47 + 1, so one has none.
@pytest.mark.parametrize(("batch_size", "num_before"), [(13, 3), (47, 1)])
def test_the_mean_of_the_workers_gradients_is_that_of_the_whole_batch(
    table: Path, row_server: ToyServer, batch_size: int, num_before: int
) -> None:
    config = silent_config(table, row_server, batch_size=batch_size)
    whole, *workers = (
        StudentRun(config, rank=rank, world_size=size) for rank, size in ((0, 1), (0, 2), (1, 2))
    )
    for run in (whole, *workers):
        run._batches_done = num_before
        size = {"rank": run._rank, "world_size": run._world_size}
        (batch,) = run.splits.train.shuffled(batch_size, seed=0, epoch=0, first_batch=num_before, **size)
        run._backward(batch, None, run._global_size(batch))
    for name, expected in whole.objective.named_parameters():
        shares = [dict(run.objective.named_parameters())[name].grad for run in workers]
        assert expected.grad is not None
        mean = torch.stack([share for share in shares if share is not None]).mean(0)
        torch.testing.assert_close(mean, expected.grad, rtol=1e-4, atol=1e-6)
    for run in (whole, *workers):
        run.close()


def test_bfloat16_computes_narrow_and_keeps_weights_wide(table: Path, row_server: ToyServer) -> None:
    run = StudentRun(silent_config(table, row_server, precision="bfloat16", optimizer={"lr": 0.02}, epochs=6))
    seen = set()
    hook = run.objective.student.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
    first, *_, last = losses_of(run)
    hook.remove()
    assert last < first
    assert torch.bfloat16 in seen
    assert {parameter.dtype for parameter in run.objective.parameters()} == {torch.float32}
    run.close()


def test_a_run_that_stopped_in_mid_epoch_goes_on_exactly(
    table: Path, row_server: ToyServer, tmp_path: Path
) -> None:
    config = make_config(table, row_server.address, losses=ALL_LOSSES, talk=TALK)
    whole = StudentRun(config)
    expected = losses_of(whole)
    first = StudentRun(config)
    got = list(first.train_epoch())  # three steps
    epoch = first.train_epoch()
    got += [next(epoch), next(epoch)]
    save(first, tmp_path)
    second = StudentRun(config)
    load(second, tmp_path)
    assert second.step == 5
    assert [step["loss"] for step in got] + losses_of(second) == expected
    for run in (whole, first, second):
        run.close()


def test_a_run_whose_workers_change_goes_on_from_its_newest_checkpoint(table: Path, tmp_path: Path) -> None:
    config = make_config(table, None, batch_size=47, epochs=6, optimizer={"schedule": "cosine"})

    def trained(folder: Path, *world_sizes: int) -> list[tuple[int, float]]:
        """Returns steps and learning rate after each of two epochs with so many workers."""
        folder.mkdir()
        after: list[tuple[int, float]] = []
        for world_size in world_sizes:
            run = StudentRun(config, world_size=world_size)
            if after:
                load(run, folder)
            for _ in range(2):
                list(run.train_epoch())
                save(run, folder)
                after.append((run.step, run._optimizer.param_groups[0]["lr"]))
        return after

    after = trained(tmp_path / "changed", 1, 2, 1)
    assert [step for step, _ in after] == [2, 4, 6, 8, 10, 12]
    assert after == trained(tmp_path / "same", 1, 1, 1)


def test_the_pace_counts_by_lap_and_by_epoch() -> None:
    now = {"clock": 0.0, "waited": 0.0}
    pace = Pace(lambda: WaitingTimes(queue_s=now["waited"]), lambda: now["clock"])

    def lap() -> tuple[float, float]:
        examples_per_s, times = pace.lap()
        return examples_per_s, times.waiting_share

    for seconds, waited in ((2.0, 1.0), (2.0, 0.0)):
        with pace.step(10):
            now["clock"] += seconds
            now["waited"] += waited
    assert lap() == (5.0, 0.25)
    pace.start_epoch()
    with pace.step(8):
        now["clock"] += 1.0
        now["waited"] += 1.0
    assert lap() == (8.0, 1.0)
    assert pace.epoch().waiting_share == 1.0
    assert pace.waiting_share == 0.4
    assert lap() == (0.0, 0.0)


def test_a_resumption_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        file.write({"kind": "steps", "step": step})
    path = tmp_path / METRICS_FILE
    with path.open("a") as torn:
        torn.write('{"kind": "st')  # its writer was killed
    MetricsFile(tmp_path).write({"kind": "resumed", "step": 1, "epoch": 0})
    file.write({"kind": "steps", "step": 2})
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert [line["kind"] for line in read_new_lines(path, 0)[0]] == ["steps"] * 3 + ["resumed", "steps"]


def test_a_worker_that_joins_later_keeps_its_own_random_numbers(
    table: Path, row_server: ToyServer, tmp_path: Path
) -> None:
    config = silent_config(table, row_server)
    runs = [StudentRun(config, rank=rank, world_size=2) for rank in range(2)]
    save(runs[0], tmp_path)  # of one worker
    checkpoints = [Checkpoints(tmp_path, config_digest(config), rank=rank, world_size=2) for rank in range(2)]
    own = torch.get_rng_state()
    runs[1].load_state(checkpoints[1].load() or {})
    assert torch.equal(torch.get_rng_state(), own)
    torch.manual_seed(7)
    for run, each in zip(runs, checkpoints, strict=True):
        each.save(1, run.state())
    expected = torch.get_rng_state()
    torch.manual_seed(8)
    runs[1].load_state(checkpoints[1].load() or {})
    assert torch.equal(torch.get_rng_state(), expected)
    for run in runs:
        run.close()
