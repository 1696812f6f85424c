"""What may be sent before it is answered: alone, and between a student and a teacher that gives little."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import torch

from student_client import FrameTooLargeError, TeacherTalk
from student_client.credit import Credit
from tests.local_talk import assert_close
from tests.toy import STUDENT_DIM

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.toy_server import ToyServer


def _run(use: Callable[[Credit], Coroutine[None, None, None]], num_bytes: int = 100) -> None:
    """Lets a test use an open credit on a loop."""

    async def run() -> None:
        credit = Credit()
        credit.open(num_bytes)
        await asyncio.wait_for(use(credit), 30)

    asyncio.run(run())


async def _wait_for(credit: Credit, num_bytes: int) -> asyncio.Task[None]:
    """Starts to spend, as far as that goes."""
    task = asyncio.create_task(credit.spend(num_bytes))
    await asyncio.sleep(0)
    return task


def test_frames_wait_for_credit_and_none_overtakes() -> None:
    async def use(credit: Credit) -> None:
        await credit.spend(60)
        large, small = await _wait_for(credit, 80), await _wait_for(credit, 10)
        assert not credit.covers(1)
        credit.grant(30)
        await asyncio.sleep(0)
        assert not large.done()
        assert not small.done()  # 70 are there, but the large one was first
        credit.grant(20)
        await asyncio.wait([large, small])
        assert credit.covers(0)
        assert not credit.covers(1)

    _run(use)


def test_a_frame_over_all_credit_is_too_large() -> None:
    async def use(credit: Credit) -> None:
        credit.grant(50)
        with pytest.raises(
            FrameTooLargeError, match="frame: got 101 bytes, expected at most 100, all the cr"
        ):
            await credit.spend(101)
        await credit.spend(100)

    _run(use)


def test_a_lost_stream_wakes_who_waits_and_refuses_who_comes() -> None:
    async def use(credit: Credit) -> None:
        await credit.spend(100)
        waiting = await _wait_for(credit, 1)
        credit.close(RuntimeError("lost"))
        for spending in (waiting, credit.spend(1)):
            with pytest.raises(RuntimeError, match="lost"):
                await spending

    _run(use)


def test_who_gives_up_leaves_the_credit_to_the_next() -> None:
    async def use(credit: Credit) -> None:
        await credit.spend(90)
        first, second = await _wait_for(credit, 50), await _wait_for(credit, 10)
        first.cancel()
        await asyncio.wait([first, second])
        third = await _wait_for(credit, 20)
        credit.grant(20)
        third.cancel()  # after it was granted, before it learned so
        await asyncio.wait([third])
        assert credit.covers(20)
        assert not second.cancelled()

    _run(use)


def test_who_was_cancelled_and_does_not_know_it_yet_costs_nothing() -> None:
    async def use(credit: Credit) -> None:
        await credit.spend(90)
        first, second = await _wait_for(credit, 50), await _wait_for(credit, 20)
        first.cancel()
        credit.grant(50)  # before the loop runs again
        await asyncio.wait([first, second])
        assert first.cancelled()
        assert second.exception() is None
        assert credit.covers(40)
        assert not credit.covers(41)
        third = await _wait_for(credit, 50)
        third.cancel()
        credit.close(RuntimeError("lost"))
        await asyncio.wait([third])
        assert third.cancelled()

    _run(use)


def test_a_teacher_that_gives_little_credit_is_waited_for(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server(max_frame_bytes=4096, credit_bytes=8192)
    states = torch.randn(400, 4, STUDENT_DIM, requires_grad=True)
    gradients: list[torch.Tensor] = []
    for micro_batch_size in (150, 20):
        talk = connect(server.address, micro_batch_size=micro_batch_size)
        heard = talk(states)
        assert sum(receipt.request_bytes for receipt in heard.receipts) > server.config.limits.credit_bytes
        gradients += torch.autograd.grad(heard.decoded.square().sum(), states)
        assert talk.conversation.num_reconnects == 0
    assert_close(gradients[0], gradients[1], 1e-5)
