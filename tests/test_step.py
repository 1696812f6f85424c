"""A training step: what it sends, when it waits, and that looking ahead changes none of its numbers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from services.teacher.families import load_teacher
from student_client import Compression, WireType
from student_client.config import TalkConfig
from student_client.progress import note_of
from student_client.run import StudentRun
from tests.test_train_run import ALL_LOSSES, losses_of, make_config
from tests.toy import NUM_IDS
from tests.toy_server import ToyServer
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from student_client.config import TrainConfig

TALK = {"codec": {"message_dim": 4}, "deterministic": True, "reading": "add"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("ids,label\n" + "".join(f"{number % NUM_IDS},{number % 2}\n" for number in range(60)))
    return path


@pytest.fixture
def row_server(tmp_path: Path) -> Iterator[ToyServer]:
    config = row_config(tmp_path)
    server = ToyServer(load_teacher(config, torch.device("cpu"), torch.float32), config)
    server.start()
    yield server
    server.close()


def _config(table: Path, server: ToyServer, **changes: Any) -> TrainConfig:
    return make_config(table, server.address, **{"losses": ALL_LOSSES, "talk": TALK, "epochs": 2, **changes})


@pytest.fixture
def _group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_step_sends_all_it_asks_before_it_waits(table: Path, row_server: ToyServer) -> None:
    run = StudentRun(_config(table, row_server))
    steps = run.train_epoch()
    next(steps)
    row_server.queue.await_arrivals(row_server.queue.num_admitted)
    row_server.queue.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(next, steps)
        row_server.queue.await_arrivals(3)  # an observation, an exchange, and the third batch's inputs
        row_server.queue.gate.set()
        assert second.result(60)["loss"] > 0
    run.close()


def test_what_needs_no_states_is_asked_before_the_student_computes_them(
    table: Path, row_server: ToyServer
) -> None:
    run = StudentRun(_config(table, row_server, losses={"kd": 1.0, "hint": 1.0}))
    admitted = []

    def look(*_: object) -> None:
        row_server.queue.await_arrivals()
        admitted.append(row_server.queue.num_admitted)

    run.objective.student.register_forward_pre_hook(look)
    next(run.train_epoch())
    assert admitted == [1]
    run.close()


def test_looking_ahead_pushing_and_splitting_change_no_number(table: Path, row_server: ToyServer) -> None:
    config = _config(table, row_server)
    run = StudentRun(config)
    got = losses_of(run)
    plain = StudentRun(config)
    expected = []
    for epoch in range(config.epochs):
        plain.objective.train()
        for batch in plain.splits.train.shuffled(config.batch_size, seed=config.seed, epoch=epoch):
            outcome = plain.objective(batch)
            plain._optimizer.zero_grad()
            torch.autograd.backward(outcome.loss)
            plain._optimizer.step()
            expected.append(outcome.loss.item())
    split = StudentRun(_config(table, row_server, talk={**TALK, "micro_batch_size": 4}))
    assert got == expected
    assert losses_of(split) == pytest.approx(expected, rel=1e-4)
    for each in (run, plain, split):
        each.close()


@pytest.mark.usefixtures("_group")
def test_the_next_batch_passes_through_a_data_parallel_wrapper(
    table: Path, row_server: ToyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrap(module: nn.Module) -> nn.Module:
        return DistributedDataParallel(module, find_unused_parameters=True)

    config = _config(table, row_server, epochs=1)
    run = StudentRun(config)
    expected = losses_of(run)
    parallel = StudentRun(config, wrap=wrap)
    talk = parallel.objective.talk
    assert talk is not None
    ahead: list[Any] = []
    read_ahead = talk.read_ahead

    def watched(inputs: Any, kinds: Any) -> None:
        ahead.append(inputs["ids"].tolist())
        read_ahead(inputs, kinds)

    monkeypatch.setattr(talk, "read_ahead", watched)
    assert losses_of(parallel) == expected
    batches = run.splits.train.shuffled(config.batch_size, seed=config.seed, epoch=0)
    assert ahead == [batch.student["ids"].tolist() for batch in batches][1:]
    run.close()
    parallel.close()


def test_the_share_of_waiting_is_told(table: Path, row_server: ToyServer) -> None:
    run = StudentRun(_config(table, row_server))
    list(run.train_epoch())
    assert 0 < run.pace.epoch().waiting_share < 1
    facts = run.finish()
    assert facts["waiting_share"] == run.pace.waiting_share
    assert json.loads(json.dumps(facts)) == facts
    steps = {"kind": "steps", "losses": {"loss": 1.0}, "examples_per_s": 20.4, "waiting_share": 0.251}
    assert note_of(steps) == "loss 1.000, 20 examples/s, 25% waiting for the teacher"
    assert note_of({"kind": "epoch", "metric": "accuracy", "valid": 0.5}) == "valid accuracy 0.500"
    run.close()
    alone = StudentRun(make_config(table, None))
    list(alone.train_epoch())
    assert alone.finish()["waiting_share"] == alone.pace.waiting_share == 0


def test_the_config_says_how_a_student_talks(table: Path, row_server: ToyServer) -> None:
    talk = {**TALK, "compression": {"message": "bfloat16", "gradient": "int8"}, "micro_batch_size": 8}
    teacher = {"address": row_server.address, "tenant": "search"}
    run = StudentRun(_config(table, row_server, talk=talk, teacher=teacher))
    assert run.objective.talk is not None
    frame = run.objective.talk.conversation._open_frame
    assert (frame.tenant, frame.deterministic) == ("search", True)
    assert Compression.from_proto(frame.compression) == run.config.talk.compression
    assert run.objective.talk._sender._limits == run.objective.talk.client.describe().limits
    first, *_, last = losses_of(run)
    assert last < first
    run.close()
    everything = TalkConfig.model_validate({"compression": "int8"}).compression
    assert everything == Compression.all(WireType.INT8)
    with pytest.raises(ValueError, match="int9"):
        TalkConfig.model_validate({"compression": "int9"})
