"""Autoscaling on real Ray Serve: replicas come with the load and go with it, and no student notices."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch

from student_client import TeacherTalk
from tests.test_serve import free_port
from tests.toy_service import await_replicas
from tests.toy_student import row_config

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.serve

NUM_STUDENTS = 4


class Student:
    """Asks the same again and again, with a pause after each answer, until told to stop."""

    def __init__(self, address: str) -> None:
        self.talk = TeacherTalk.connect(
            address, student_dim=6, message_dim=32, message_len=64, reading="replace", deterministic=True
        )
        self.states = torch.randn(32, 6, requires_grad=True)
        self.pause_s = 0.0
        self.stopped = threading.Event()

    def study(self) -> bool:
        """Returns whether all answers were alike, to the last bit."""
        first: tuple[torch.Tensor, torch.Tensor] | None = None
        while not self.stopped.wait(self.pause_s):
            heard = self.talk(self.states).decoded
            (gradient,) = torch.autograd.grad(heard.square().sum(), self.states)
            first = first or (heard, gradient)
            if not (torch.equal(first[0], heard) and torch.equal(first[1], gradient)):
                return False
        return first is not None


def test_replicas_come_with_the_load_and_go_with_it(tmp_path: Path) -> None:
    from services.teacher.local import serving  # noqa: PLC0415 - Ray's environment is set first

    scaling = {
        "max_replicas": 2,
        "target_queue_ms": 0.2,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 2,
        "look_back_s": 2,
    }
    config = row_config(tmp_path, port=free_port(), drain_s=0.5, num_cpus=0.5, autoscaling=scaling)
    with serving(config) as address, ThreadPoolExecutor(NUM_STUDENTS) as pool:
        students = [Student(address) for _ in range(NUM_STUDENTS)]
        try:
            studies = [pool.submit(student.study) for student in students]
            await_replicas(address, lambda found: sorted(found.values()) == [2, 2])  # some have moved
            for student in students:
                student.pause_s = 0.5
            await_replicas(address, lambda found: list(found.values()) == [NUM_STUDENTS])
        finally:
            for student in students:
                student.stopped.set()
        assert [study.result(60) for study in studies] == [True] * NUM_STUDENTS
        assert sum(student.talk.conversation.num_reconnects for student in students) >= NUM_STUDENTS
        for student in students:
            student.talk.close()
