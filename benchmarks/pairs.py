"""Offers load to a server: many tenants, each in a closed loop of an exchange and then its backward pass.

All tenants live on one event loop of one process and talk through the real client. What they send is
prepared beforehand, so that the client costs little: messages and gradients are the same in every pair, and
so is the codec, which goes over the wire once. (Training sends it every step, to any kind of server.)
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from preceptor import wire
from preceptor.codec import CodecKind, CodecSpec, TeacherCodec
from preceptor.v1 import teacher_pb2 as pb
from student_client.conversation import Conversation
from student_client.options import ClientOptions
from student_client.turns import CodecSnapshot, ForwardAnswer, GradientsAnswer, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = [
    "CODEC_SPEC",
    "SIZES",
    "PairCost",
    "Round",
    "Size",
    "Tenant",
    "close_all",
    "num_pairs_for",
    "open_tenants",
    "run_for",
    "run_round",
    "tensors_of",
    "warm_up",
]

CODEC_SPEC = CodecSpec(kind=CodecKind.LINEAR, message_dim=32)
# Patient: with 64 large turns in a queue an answer may take a minute, and nobody must replay.
_OPTIONS = ClientOptions(connect_timeout_s=60.0, answer_timeout_s=600.0, deadline_s=1200.0)
_WARM_UP_TOKENS = 8192
_WARM_UP_PAIRS = 2


@dataclass(frozen=True)
class Size:
    """The size of a turn.

    Attributes:
        num_rows: examples of a message.
        message_len: positions an example.
    """

    num_rows: int
    message_len: int

    @property
    def num_tokens(self) -> int:
        """Positions that one turn sends through the teacher."""
        return self.num_rows * self.message_len


SIZES = {"small": Size(8, 1), "medium": Size(8, 4), "large": Size(32, 64)}


@dataclass(frozen=True)
class PairCost:
    """What one exchange with its backward pass cost.

    Attributes:
        latency_s: from before the exchange until the gradients are there, in seconds.
        tokens: positions that both passes took from the teacher, as their receipts say.
        retained: whether the backward pass found its graph.
        num_tenants: tenants that shared the exchange and the backward pass.
    """

    latency_s: float
    tokens: int
    retained: bool
    num_tenants: tuple[int, int]


@dataclass(frozen=True)
class Round:
    """What came of tenants that talked at the same time.

    Attributes:
        elapsed_s: from the start until the last of them was done, in seconds.
        costs: of each conversation, pair by pair.
    """

    elapsed_s: float
    costs: list[list[PairCost]]

    @property
    def all_costs(self) -> list[PairCost]:
        """The pairs of all conversations."""
        return [cost for costs in self.costs for cost in costs]

    @property
    def pairs_per_s(self) -> float:
        """Pairs a second of all tenants together."""
        return len(self.all_costs) / self.elapsed_s


def tensors_of(size: Size, seed: int) -> tuple[Tensor, Tensor]:
    """Returns a message and a gradient of its reply, both [B, K, M], float32."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size.num_rows, size.message_len, CODEC_SPEC.message_dim)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


class Tenant:
    """One conversation of a tenant, with a codec of its own; one pair is under way at a time.

    Args:
        target: `host:port` of the server.
        name: of the tenant.
        hidden_size: the teacher's width.
        seed: of codec, messages and gradients.
        split_layer: the talking layer; None: the teacher's default.
        deterministic: whether results must not depend on others, to the last bit.
    """

    def __init__(
        self,
        target: str,
        name: str,
        *,
        hidden_size: int,
        seed: int,
        split_layer: int | None,
        deterministic: bool = False,
    ) -> None:
        self._seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            codec = TeacherCodec(CODEC_SPEC, hidden_size)
        self._codec = CodecSnapshot(1, dict(codec.named_parameters()))
        opening = pb.Open(
            codec=CODEC_SPEC.to_proto(),
            reading=pb.READING_REPLACE,
            split_layer=split_layer,
            tenant=name,
            deterministic=deterministic,
        )
        self._conversation = Conversation((target,), opening, _OPTIONS)
        self._numbers = itertools.count(1)
        self._prepared: dict[Size, tuple[pb.ConverseRequest, dict[str, Tensor]]] = {}

    def prepare(self, size: Size) -> None:
        """Makes the frame and the gradients of a size, if they are not there yet."""
        if size not in self._prepared:
            message, grad_reply = tensors_of(size, self._seed)
            exchange = pb.Exchange(codec_version=1, message=wire.encode(message), wants_gradient=True)
            self._prepared[size] = pb.ConverseRequest(exchange=exchange), {"reply": grad_reply}

    async def pair(self, size: Size) -> tuple[ForwardAnswer, GradientsAnswer]:
        """Exchanges a message of a prepared size and takes the gradients."""
        frame, grad_values = self._prepared[size]
        # The one frame can be used again: the pair before this one has been answered.
        frame.exchange.turn = next(self._numbers)
        turn = Turn(frame.exchange.turn, frame, self._codec)
        return await self._conversation.forward(turn), await self._conversation.backward(turn, grad_values)

    async def talk(self, size: Size, goes_on: Callable[[int], bool]) -> list[PairCost]:
        """Does pair after pair for as long as `goes_on` of the number done so far; returns what they cost."""
        costs: list[PairCost] = []
        while goes_on(len(costs)):
            start_s = time.perf_counter()
            reply, gradients = await self.pair(size)
            receipts = reply.receipt, gradients.receipt
            costs.append(
                PairCost(
                    time.perf_counter() - start_s,
                    receipts[0].tokens + receipts[1].tokens,
                    receipts[1].graph_source == pb.GRAPH_SOURCE_RETAINED,
                    (receipts[0].num_tenants, receipts[1].num_tenants),
                )
            )
        return costs

    async def close(self) -> None:
        """Ends the conversation."""
        await self._conversation.close()


def open_tenants(
    target: str, num_tenants: int, hidden_size: int, split_layer: int, *, deterministic: bool = False
) -> list[Tenant]:
    """Returns tenants of different names, codecs and messages; their streams open with their first pair."""
    return [
        Tenant(
            target,
            f"tenant-{seed}",
            hidden_size=hidden_size,
            seed=seed,
            split_layer=split_layer,
            deterministic=deterministic,
        )
        for seed in range(num_tenants)
    ]


async def close_all(tenants: Sequence[Tenant]) -> None:
    """Ends the conversations."""
    for tenant in tenants:
        await tenant.close()


async def warm_up(tenants: Sequence[Tenant], size: Size) -> float:
    """Lets tenants do what need not be measured: open their streams, send their codecs, meet each other.

    Returns:
        Pairs a second of a short round; of large turns only some of the tenants do it.
    """
    for each in (Size(1, 1), size):
        for tenant in tenants:
            tenant.prepare(each)
    await run_round(tenants, Size(1, 1), 1)
    some = tenants[: max(1, _WARM_UP_TOKENS // size.num_tokens)]
    return (await run_round(some, size, _WARM_UP_PAIRS)).pairs_per_s


def num_pairs_for(seconds: float, pairs_per_s: float, num_tenants: int) -> int:
    """Returns how many pairs each tenant does in a round of about `seconds`."""
    return max(1, round(seconds * pairs_per_s / num_tenants))


async def run_round(tenants: Sequence[Tenant], size: Size, num_pairs: int) -> Round:
    """Lets every tenant do a number of pairs, all at the same time, and waits for the last one."""
    return await _run(tenants, size, lambda num_done: num_done < num_pairs)


async def run_for(tenants: Sequence[Tenant], size: Size, seconds: float) -> Round:
    """Lets every tenant begin pairs for a time, and waits for the last one."""
    deadline_s = time.perf_counter() + seconds
    return await _run(tenants, size, lambda _: time.perf_counter() < deadline_s)


async def _run(tenants: Sequence[Tenant], size: Size, goes_on: Callable[[int], bool]) -> Round:
    start_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(tenant.talk(size, goes_on)) for tenant in tenants]
    return Round(time.perf_counter() - start_s, [task.result() for task in tasks])
