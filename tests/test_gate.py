"""The gate while its file changes: what is read last counts, for everybody, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from services.teacher.access import admit
from services.teacher.gate import AccessDeniedError, Gate
from services.teacher.tenants import Tenant, Tenants, new_key
from tests.test_tenant_file import bearer, file

if TYPE_CHECKING:
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


def test_what_was_read_before_a_revocation_does_not_come_back_after_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, key = new_key("a")
    Tenants(tenants={"a": Tenant(keys=(key,))}).save(file)
    gate = Gate(file)
    Tenants(tenants={"a": Tenant(keys=(key,), weight=2)}).save(file)

    async def run() -> None:
        reader = Reader(monkeypatch)
        looking = asyncio.create_task(gate.look())
        await asyncio.to_thread(reader.has_read.wait, 30)
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
        reader = Reader(monkeypatch)
        looking = asyncio.create_task(gate.look())
        await asyncio.to_thread(reader.has_read.wait, 30)
        admitting = asyncio.create_task(admit(gate, Call(token)))
        await asyncio.sleep(0.05)
        reader.go_on.set()
        assert (await admitting).tenant == "new"
        await looking

    asyncio.run(run())


def test_a_look_that_is_given_up_leaves_the_next_one_right(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, key = new_key("a")
    Tenants(tenants={"a": Tenant(keys=(key,))}).save(file)
    gate = Gate(file)
    Tenants(tenants={"a": Tenant(keys=(key,), weight=2)}).save(file)

    async def run() -> None:
        reader = Reader(monkeypatch)
        looking = asyncio.create_task(gate.look())
        await asyncio.to_thread(reader.has_read.wait, 30)
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
