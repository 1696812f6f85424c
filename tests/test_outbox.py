"""A student that does not read its answers is not read either."""

from __future__ import annotations

import asyncio

from preceptor.v1 import teacher_pb2 as pb
from services.teacher.outbox import Outbox


def answer(turn: int) -> pb.ConverseResponse:
    return pb.ConverseResponse(failed=pb.Failed(turn=turn))


def test_there_is_room_again_once_answers_are_taken() -> None:
    async def run() -> list[bool]:
        outbox = Outbox(max_waiting=2)
        for turn in range(3):
            outbox.put(answer(turn))
        waiting = asyncio.create_task(outbox.room())
        await asyncio.sleep(0)
        had_room = [waiting.done()]
        await anext(outbox.answers())
        await waiting
        return [*had_room, waiting.done()]

    assert asyncio.run(run()) == [False, True]


def test_answers_come_in_order_until_the_end() -> None:
    async def run() -> list[int]:
        outbox = Outbox(max_waiting=1)
        for turn in (3, 1, 2):
            outbox.put(answer(turn))
        outbox.put(None)
        return [each.failed.turn async for each in outbox.answers()]

    assert asyncio.run(run()) == [3, 1, 2]
