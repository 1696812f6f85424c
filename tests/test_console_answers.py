"""How the console's answers are made, and what it does to a directory that can't have it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, NoReturn

import pytest

from benchmarks.teachers import free_port
from services.teacher import console_answers, console_server
from services.teacher.config import ConsoleConfig, ServiceConfig
from tests.toy_status import ToySource, status_of_a_day

if TYPE_CHECKING:
    from preceptor.v1 import status_pb2 as pb
    from services.teacher.gate import Pass


@pytest.fixture
def source() -> ToySource:
    return ToySource(status_of_a_day(num_samples=1))


def test_who_does_not_wait_for_an_answer_has_no_more_written(
    source: ToySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_answers, "_MAX_KEPT", 2)
    now_s, is_free = [0.0], threading.Event()

    def answer(shown: Pass | None, history_s: int = 0) -> pb.GetStatusResponse:
        now_s[0] += 10  # each takes long
        return ToySource.answer(source, shown, history_s)

    monkeypatch.setattr(source, "answer", answer)
    monkeypatch.setattr(console_answers, "_json_of", lambda *_, packed: packed and is_free.wait())

    async def run() -> None:
        answers = console_answers.Answers(source, lambda: now_s[0])
        for history_s in [*range(601)] * 3:
            asking = asyncio.create_task(answers.answer(None, history_s, packed=True))
            await asyncio.sleep(0)
            asking.cancel()
        is_free.set()
        await answers.answer(None, 600, packed=True)  # the last one that was asked for
        now_s[0] += 10
        await answers.answer(None, 0, packed=True)
        assert len(answers._answers) == 2

    asyncio.run(run())
    assert sorted({history_s for _, history_s in source.asked}) == [0, 10, 20, 30, 40, 50, 60, 600]
    assert len(source.asked) == 8 + 1


def test_a_console_that_can_not_be_is_told_once_and_harms_nobody(
    source: ToySource, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> NoReturn:
        raise TypeError("of another uvicorn")

    monkeypatch.setattr(console_server, "_config", fail)
    config = ServiceConfig(auth="none", console=ConsoleConfig(port=free_port()))
    server = console_server.ConsoleServer(config, source, None)
    for _ in range(2):
        asyncio.run(server.keep_up())
    assert caplog.text.count("of another uvicorn") == 1
