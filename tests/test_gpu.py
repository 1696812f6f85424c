"""Students on a GPU, and a teacher on Ray Serve with one: the same is learnt as on the CPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from preceptor.terms import Reading
from student_client.run import StudentRun
from tests.local_talk import assert_close, gradients_of, loss_of
from tests.test_shares import silent_config, weights_of
from tests.test_train_run import load, losses_of, row_server, save, table
from tests.test_trainer import fresh_model, logged, trainer_of
from tests.test_workers import SILENT, trained
from tests.tiny_bert import folder, teacher
from tests.toy import STUDENT_DIM
from tests.toy_frames import ids
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from student_client import TeacherTalk
    from student_client.config import TrainConfig
    from tests.toy_server import ToyServer

__all__ = ["folder", "row_server", "table", "teacher"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda")
TOLERANCE = 1e-4  # products are added up in another order


def on_gpu(config: TrainConfig) -> StudentRun:
    return StudentRun(config, wrap=lambda module: module.to(GPU))


@pytest.mark.parametrize("reading", list(Reading))
def test_a_talk_on_a_gpu_has_the_gradients_of_one_on_the_cpu(
    server: ToyServer, connect: Callable[..., TeacherTalk], reading: Reading
) -> None:
    inputs = None if reading is Reading.REPLACE else {"ids": ids(3)}
    gradients = []
    for device in (torch.device("cpu"), GPU):
        talk = connect(server.address, reading=reading).to(device)
        numbers = torch.Generator().manual_seed(1)
        states, target = (each.to(device) for each in torch.randn(2, 3, 4, STUDENT_DIM, generator=numbers))
        states.requires_grad_()
        heard = talk(states, inputs=inputs)
        assert heard.decoded.device == states.device
        gradients.append(gradients_of(loss_of(heard, target), talk, states=states))
    expected, got = gradients
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        assert gradient.is_cuda
        assert_close(gradient.cpu(), expected[name], TOLERANCE)


def test_a_run_on_a_gpu_learns_what_it_learns_on_the_cpu(table: Path, row_server: ToyServer) -> None:
    config = silent_config(table, row_server, accumulate=2)
    here, there = StudentRun(config), on_gpu(config)
    assert losses_of(there) == pytest.approx(losses_of(here), rel=1e-3)
    weights = weights_of(there)
    for name, expected in weights_of(here).items():
        torch.testing.assert_close(weights[name].cpu(), expected, rtol=1e-3, atol=1e-4)
    here.close()
    there.close()


def test_a_run_on_a_gpu_learns_in_bfloat16(table: Path, row_server: ToyServer) -> None:
    run = on_gpu(silent_config(table, row_server, precision="bfloat16", optimizer={"lr": 0.02}, epochs=6))
    first, *_, last = losses_of(run)
    assert last < first
    assert {parameter.dtype for parameter in run.objective.parameters()} == {torch.float32}
    run.close()


def test_a_run_on_a_gpu_goes_on_from_its_checkpoint(
    table: Path, row_server: ToyServer, tmp_path: Path
) -> None:
    student = {"student": {**silent_config(table, row_server).student.model_dump(), "kwargs": {}}}  # dropout
    config = silent_config(table, row_server, **student)
    whole, first, second = on_gpu(config), on_gpu(config), on_gpu(config)
    torch.cuda.manual_seed(3)
    expected = losses_of(whole)
    torch.cuda.manual_seed(3)
    got = [step["loss"] for step in first.train_epoch()]
    save(first, tmp_path)
    torch.cuda.manual_seed(4)
    load(second, tmp_path)
    assert got + losses_of(second) == pytest.approx(expected, rel=1e-4)
    for run in (whole, first, second):
        run.close()


@pytest.mark.parametrize("precision", [{}, {"bf16": True}])
def test_the_trainer_on_a_gpu_learns_what_it_learns_on_the_cpu(
    folder: Path, teacher: ToyServer, tmp_path: Path, precision: dict[str, Any]
) -> None:
    losses = []
    for number, device in enumerate(({"use_cpu": True}, {"use_cpu": False, **precision})):
        model = fresh_model()
        trainer = trainer_of(model, folder, teacher.address, tmp_path / str(number), **device)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[1] == pytest.approx(losses[0], rel=0.05 if precision else 1e-3)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A teacher on Ray Serve that has a part of the GPU."""
    from services.teacher.local import serving  # noqa: PLC0415 - Ray's environment is set first
    from tests.test_serve import free_port  # noqa: PLC0415

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    config = row_config(
        tmp_path_factory.mktemp("rows"),
        port=free_port(),
        drain_s=0.5,
        num_cpus=0.5,
        num_gpus=0.4,
        dtype="float32",
    )
    with serving(config) as address:
        yield address


@pytest.mark.serve
def test_workers_that_share_a_gpu_with_their_teacher_learn_what_one_learns(served: str, table: Path) -> None:
    from benchmarks.ddp import last_state, worst_difference  # noqa: PLC0415

    alone = trained(table, served, "alone", student=SILENT)  # on the CPU
    states = []
    for num_workers in (1, 2):
        name = f"gpu-{num_workers}"
        run = trained(table, served, name, num_workers=num_workers, student=SILENT, gpus_per_worker=0.25)
        states.append(last_state(run.folder))
    for state in states:
        assert worst_difference(state, last_state(alone.folder)) <= 10 * TOLERANCE
    assert worst_difference(*states) <= TOLERANCE
