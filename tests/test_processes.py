"""Talking from several processes: DDP, and children that were spawned or forked."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from student_client import TeacherError
from tests.local_talk import local_talk, loss_of
from tests.toy import STUDENT_DIM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.teacher.families.base import Teacher
    from student_client import TeacherTalk
    from tests.toy_server import ToyServer

NUM_WORKERS = 2


class _Student(nn.Module):
    def __init__(self, talk: TeacherTalk) -> None:
        super().__init__()
        self.lower = nn.Linear(5, STUDENT_DIM)
        self.talk = talk

    def forward(self, x: Tensor) -> Tensor:
        states = torch.tanh(self.lower(x))
        return loss_of(self.talk(states), states)


def _shard(rank: int) -> Tensor:
    return torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(rank))


def _train(rank: int, student: _Student, folder: Path) -> None:
    """One worker: a step under DDP, its gradients saved."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=NUM_WORKERS)
    wrapped = DistributedDataParallel(student)
    torch.autograd.backward(wrapped(_shard(rank)))
    torch.save({name: each.grad for name, each in student.named_parameters()}, folder / f"{rank}.pt")
    student.talk.close()
    dist.destroy_process_group()


def test_ddp_averages_the_codecs_gradients(
    server: ToyServer, connect: Callable[..., TeacherTalk], tiny_teacher: Teacher, tmp_path: Path
) -> None:
    student = _Student(connect(server.address))
    other = torch.multiprocessing.get_context("spawn").Process(target=_train, args=(1, student, tmp_path))
    other.start()
    _train(0, copy.deepcopy(student), tmp_path)
    other.join()
    assert other.exitcode == 0
    losses = []
    for rank in range(NUM_WORKERS):
        states = torch.tanh(student.lower(_shard(rank)))
        losses.append(loss_of(local_talk(student.talk, tiny_teacher, states), states))
    torch.autograd.backward(torch.stack(losses).mean())
    expected = {name: each.grad for name, each in student.named_parameters()}
    for rank in range(NUM_WORKERS):
        got = torch.load(tmp_path / f"{rank}.pt")
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-7)


def _forked(talk: TeacherTalk, states: Tensor) -> str:
    """Talks in a forked child; returns the reply's sum or the error."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        with contextlib.suppress(BaseException), os.fdopen(writer, "w") as pipe:
            try:
                pipe.write(f"{float(talk(states).decoded.sum().detach()):.4f}")
            except TeacherError as error:
                pipe.write(str(error))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.wait()
    return said


def _talk_and_fork(talk: TeacherTalk, states: Tensor, answers: multiprocessing.Queue[str]) -> None:
    torch.set_num_threads(1)
    answers.put(_forked(talk, states))
    answers.put(f"{float(talk(states).decoded.sum().detach()):.4f}")
    answers.put(_forked(talk, states))
    answers.put(f"{float(talk(states).decoded.sum().detach()):.4f}")
    talk.close()


def test_children_talk_if_they_were_spawned_or_forked_before_their_parent_talked(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(server.address)
    states = torch.randn(2, 4, STUDENT_DIM)
    here = f"{float(talk(states).decoded.sum().detach()):.4f}"
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=_talk_and_fork, args=(talk, states, answers))
    child.start()
    early, spawned, late, still = (answers.get(timeout=60) for _ in range(4))
    child.join(60)
    assert child.exitcode == 0
    assert early == spawned == still == here
    assert "forked after its parent had talked to a teacher, expected one that was spawned" in late
