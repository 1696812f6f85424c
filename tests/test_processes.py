"""Talking from several processes: DDP, and children that were spawned or forked."""

from __future__ import annotations

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
    dist.barrier()  # who goes while the other still works takes its threads down with it
    del wrapped
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


def _fork(run: Callable[[], str]) -> str:
    """Runs something in a forked child; returns what it returned or raised, or how the child died."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = run()
        except TeacherError as error:
            said = str(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    return said if status == 0 else f"died with status {status}"


def _talk_and_fork(talk: TeacherTalk, states: Tensor, answers: multiprocessing.Queue[str]) -> None:
    """Forks before talking, after it, and many times without talking in the child."""
    torch.set_num_threads(1)

    def speak() -> str:
        return f"{float(talk(states).decoded.sum().detach()):.4f}"

    def look_ahead() -> str:
        for _ in range(3):
            talk.read_ahead({"ids": torch.zeros(2, 4, dtype=torch.long)}, ["logits"])
        return f"room for {talk.conversation._ahead_room._value}"

    answers.put(_fork(speak))
    answers.put(speak())
    answers.put(_fork(speak))
    answers.put(" ".join({speak() and _fork(lambda: "fine") for _ in range(20)}))
    answers.put(speak())
    answers.put(_fork(look_ahead))
    talk.close()


def test_a_conversation_and_forks_do_not_harm_each_other(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(server.address)
    states = torch.randn(2, 4, STUDENT_DIM)
    here = f"{float(talk(states).decoded.sum().detach()):.4f}"
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=_talk_and_fork, args=(talk, states, answers))
    child.start()
    forked_before, spawned, forked_after, silent, still, ahead = (answers.get(timeout=60) for _ in range(6))
    child.join(60)
    assert child.exitcode == 0
    assert forked_before == spawned == still == here
    assert "forked after its parent had talked to a teacher, expected one that was spawned" in forked_after
    assert silent == "fine"
    assert ahead == "room for 2"
