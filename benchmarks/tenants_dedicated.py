"""Tenants that have a teacher each, in a process each, as users do today.

The passes are those of the service, under autograd, in the tenant's own process:
no server, no wire, one torch thread a process.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import time
from typing import TYPE_CHECKING

import torch

from benchmarks.pairs import CODEC_SPEC, SIZES, tensors_of
from preceptor.codec import TeacherCodec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from benchmarks.pairs import Size
    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher

__all__ = ["DedicatedTenants", "local_pair"]

_MODULES_TO_PRELOAD = ["benchmarks.tenants_dedicated", "services.teacher.families.encoder"]


def local_pair(teacher: Teacher, seed: int, split_layer: int) -> Callable[[Size], None]:
    """Returns a function that does one exchange with its backward pass in this process."""
    from services.teacher.families.base import States

    torch.manual_seed(seed)
    codec = TeacherCodec(CODEC_SPEC, teacher.facts.hidden_size).to(teacher.device)

    @functools.cache
    def prepared(size: Size) -> list[torch.Tensor]:
        return [tensor.to(teacher.device) for tensor in tensors_of(size, seed)]

    def pair(size: Size) -> None:
        message, grad_reply = prepared(size)
        message.requires_grad_()
        mask = torch.ones(message.shape[:2], dtype=torch.bool, device=teacher.device)
        decoded = codec.decoder(message).to(teacher.facts.dtype)
        upper = teacher.upper(States(decoded, mask), split_layer)
        reply = codec.encoder(upper.hidden_states.float(), mask, mask)
        gradients = torch.autograd.grad(reply, [message, *codec.parameters()], grad_reply)
        for tensor in (reply, *gradients):
            tensor.detach().cpu()

    return pair


class DedicatedTenants:
    """Tenants in processes of their own, which wait until they are told to work.

    Args:
        connections: to each of them.
    """

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections

    def run_round(self, num_tenants: int, size: Size, num_pairs: int) -> float:
        """Lets the first tenants do pairs at the same time; returns all their pairs a second."""
        used = self._connections[:num_tenants]
        start_s = time.perf_counter()
        for connection in used:
            connection.send((size, num_pairs))
        for connection in used:
            connection.recv()
        return num_tenants * num_pairs / (time.perf_counter() - start_s)

    def warm_up(self, num_tenants: int, size: Size) -> float:
        """Lets tenants do a small pair, and a few of them, as many as there are cores, one of a size.

        Returns:
            The pairs a second of those few: about what all of them will do together.
        """
        self.run_round(num_tenants, SIZES["small"], 1)
        return self.run_round(min(num_tenants, len(os.sched_getaffinity(0))), size, 1)

    @classmethod
    @contextlib.contextmanager
    def running(cls, config: ServiceConfig, num_tenants: int, split_layer: int) -> Iterator[DedicatedTenants]:
        """Starts tenants, each of which loads the teacher, and ends them when done."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_MODULES_TO_PRELOAD)
        pipes = [context.Pipe() for _ in range(num_tenants)]
        processes = [
            context.Process(target=_tenant, args=(pipe[1], config, seed, split_layer), daemon=True)
            for seed, pipe in enumerate(pipes)
        ]
        for pipe, process in zip(pipes, processes, strict=True):
            process.start()
            pipe[1].close()  # a tenant that fails then ends `recv`
        connections = [pipe[0] for pipe in pipes]
        try:
            for connection in connections:
                connection.recv()
            yield cls(connections)
        finally:
            for connection, process in zip(connections, processes, strict=True):
                with contextlib.suppress(BrokenPipeError):
                    connection.send(None)
                process.join()


def _tenant(connection: Connection, config: ServiceConfig, seed: int, split_layer: int) -> None:
    """Loads a teacher, says so, and does what it is told until it is told None."""
    from services.teacher.loading import load_frozen

    pair = local_pair(load_frozen(config), seed, split_layer)
    connection.send("ready")
    while (wanted := connection.recv()) is not None:
        size, num_pairs = wanted
        for _ in range(num_pairs):
            pair(size)
        connection.send("done")
