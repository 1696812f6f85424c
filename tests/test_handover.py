"""Calls from other threads reach their event loop, together and in order."""

from __future__ import annotations

import asyncio
import threading

from services.teacher.handover import Handover


def test_calls_of_another_thread_run_on_the_loop_in_order() -> None:
    got: list[tuple[int, str]] = []

    async def main() -> None:
        handover, done = Handover.to(asyncio.get_running_loop()), asyncio.Event()

        def hand_over() -> None:
            for number in range(100):
                handover.call(lambda number=number: got.append((number, threading.current_thread().name)))  # type: ignore[misc]
            handover.call(done.set)

        thread = threading.Thread(target=hand_over)
        thread.start()
        await asyncio.wait_for(done.wait(), 30)
        thread.join()

    asyncio.run(main())
    assert got == [(number, "MainThread") for number in range(100)]


def test_calls_that_come_together_wake_the_loop_once() -> None:
    num_wakes = 0

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def counted(*args: object) -> asyncio.Handle:
            nonlocal num_wakes
            num_wakes += 1
            return wake(*args)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        handover, got = Handover.to(loop), []
        for number in range(5):
            handover.call(lambda number=number: got.append(number))  # type: ignore[misc]
        await asyncio.sleep(0)
        assert got == [0, 1, 2, 3, 4]
        handover.call(lambda: got.append(5))
        await asyncio.sleep(0)
        assert got[-1] == 5

    asyncio.run(main())
    assert num_wakes == 2


def test_a_loop_has_one_handover_and_a_closed_one_takes_nothing() -> None:
    got: list[int] = []

    async def main() -> Handover:
        loop = asyncio.get_running_loop()
        assert Handover.to(loop) is Handover.to(loop)
        return Handover.to(loop)

    asyncio.run(main()).call(lambda: got.append(1))
    assert got == []
