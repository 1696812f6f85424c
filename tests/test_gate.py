"""The gate while its file changes: what is read last counts, for everybody, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from services.teacher.access import admit
from services.teacher.gate import AccessDeniedError, Gate
from services.teacher.tenants import Tenant, Tenants, new_key
from tests.test_tenant_file import Clock, bearer, file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["file"]


class Reader:
    """Reads files of tenants; a test may hold what was read before it is handed on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_read, self.go_on = threading.Event(), threading.Event()
        load = Tenants.load

        def held(path: Path) -> Tenants:
            tenants = load(path)
            self.has_read.set()
            assert self.go_on.wait(30)
            return tenants

        monkeypatch.setattr(Tenants, "load", held)


class Call:
    """A call as its server sees it."""

    def __init__(self, token: str) -> None:
        self._metadata = bearer(token)

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata


def changed_gate(file: Path) -> tuple[Gate, str]:
    """Returns a gate whose file has changed since it was read, and the token of its only team, "a"."""
    token, key = new_key("a")
    Tenants(tenants={"a": Tenant(keys=(key,))}).save(file)
    gate = Gate(file)
    Tenants(tenants={"a": Tenant(keys=(key,), weight=2)}).save(file)
    return gate, token


async def start_looking(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> tuple[Reader, asyncio.Task[None]]:
    """Has a gate read its file, and hold what it read."""
    reader = Reader(monkeypatch)
    looking = asyncio.create_task(gate.look())
    assert await asyncio.to_thread(reader.has_read.wait, 30)
    return reader, looking


def test_what_was_read_before_a_revocation_does_not_come_back_after_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, token = changed_gate(file)

    async def run() -> None:
        reader, looking = await start_looking(gate, monkeypatch)
        Tenants(tenants={"a": Tenant(keys=())}).save(file)
        admitting = asyncio.create_task(admit(gate, Call(token)))
        await asyncio.sleep(0.05)
        assert not admitting.done()  # it does not go by what is being replaced
        reader.go_on.set()
        await looking
        with pytest.raises(AccessDeniedError):
            await admitting
        with pytest.raises(AccessDeniedError):
            gate.admit(bearer(token))

    asyncio.run(run())


def test_a_token_that_is_being_read_is_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, key = new_key("new")
    Tenants(tenants={}).save(file)
    gate = Gate(file)
    Tenants(tenants={"new": Tenant(keys=(key,))}).save(file)

    async def run() -> None:
        reader, looking = await start_looking(gate, monkeypatch)
        admitting = asyncio.create_task(admit(gate, Call(token)))
        await asyncio.sleep(0.05)
        reader.go_on.set()
        assert (await admitting).tenant == "new"
        await looking

    asyncio.run(run())


def test_a_look_that_is_given_up_leaves_the_next_one_right(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, token = changed_gate(file)

    async def run() -> None:
        reader, looking = await start_looking(gate, monkeypatch)
        looking.cancel()
        Tenants(tenants={"a": Tenant(keys=(), weight=3)}).save(file)
        again = asyncio.create_task(gate.look())
        await asyncio.sleep(0.05)
        reader.go_on.set()
        await again
        assert gate.weights == {"a": 3.0}
        with pytest.raises(AccessDeniedError):
            gate.admit(bearer(token))

    asyncio.run(run())


def test_what_is_wrong_with_the_file_is_logged_and_when_nobody_is_let_in_any_more(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token, key = new_key("a")
    Tenants(tenants={"a": Tenant(keys=(key,))}).save(file)
    clock = Clock()
    gate = Gate(file, clock=clock)
    good = file.read_text()
    file.write_text(good.replace("weight: 1.0", "weight: .inf"))
    for _ in range(3):
        asyncio.run(gate.look())
    file.unlink()
    for _ in range(3):
        asyncio.run(gate.look())
    reasons = [each.getMessage() for each in caplog.records]
    assert len(reasons) == 2
    assert "then nobody is let in" in reasons[0]
    assert "tenants.a.weight: Input should be" in reasons[0]
    assert "No such file" in reasons[1]
    assert not any(value in caplog.text for value in (key.salt, key.digest))
    clock.now_s += 400
    for _ in range(3):
        asyncio.run(gate.look())
    assert [each.getMessage() for each in caplog.records[2:]] == [
        f"nobody is let in any more, until the tenants can be read: {file}"
    ]
    file.write_text(good)
    asyncio.run(gate.look())
    assert not gate.is_blind
    assert gate.admit(bearer(token)).tenant == "a"


@pytest.mark.parametrize("moment", range(5))
def test_a_team_that_is_removed_while_it_is_let_in_is_let_in_or_not(file: Path, moment: int) -> None:
    token, key = new_key("a")
    Tenants(tenants={"a": Tenant(keys=(key,))}).save(file)
    moments: Iterator[int] = iter(())

    def clock() -> float:
        if next(moments, -1) == moment:
            Tenants(tenants={}).save(file)
            other = threading.Thread(target=lambda: asyncio.run(gate.look()))
            other.start()
            other.join()
        return 1e9

    gate = Gate(file, clock=clock)
    moments = iter(range(5))
    with contextlib.suppress(AccessDeniedError):
        assert gate.admit(bearer(token)).tenant == "a"


def test_a_team_that_may_not_talk_here_is_named_where_it_is_refused(file: Path) -> None:
    token, key = new_key("a")
    Tenants(tenants={"a": Tenant(keys=(key,), teachers=("other",))}).save(file)
    gate = Gate(file, "minilm")
    for shown, tenant in ((token, "a"), (f"{token}x", "")):
        with pytest.raises(AccessDeniedError) as told:
            gate.admit(bearer(shown))
        assert told.value.tenant == tenant
