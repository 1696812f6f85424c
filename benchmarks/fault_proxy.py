"""A network that breaks on command: a TCP proxy on loopback between students and one replica.

    with FaultProxy(target) as proxy:
        talk = TeacherTalk.connect(f"preceptor://{proxy.address}", ...)
        proxy.strike(Fault.RESET)
        armed = proxy.strike(Fault.CUT, Direction.TO_STUDENT, after_bytes=1000)
        assert armed.wait()

It knows nothing of what it carries. A fault strikes at once, or when so many more bytes have gone in one
direction, between two of them. It runs on a thread of its own; its methods are called from any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.faults import Direction, Fault, Strike

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Self

__all__ = ["FaultProxy"]

_CHUNK_BYTES = 64 << 10
_PATIENCE_S = 30.0
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Connection:
    """The sockets of one connection, and what carries bytes between them."""

    student: socket.socket
    teacher: socket.socket
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    pumps: list[asyncio.Task[None]] = field(default_factory=list)

    def shut(self, fault: Fault) -> None:
        """Ends both sides, with a RST unless it is a CUT."""
        loop = asyncio.get_running_loop()
        for pump in self.pumps:
            pump.cancel()
        for end in (self.student, self.teacher):
            loop.remove_reader(end)  # another socket may soon have its number
            loop.remove_writer(end)
            if fault is Fault.CUT:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            else:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            end.close()


class FaultProxy:
    """Forwards connections to one target until told otherwise; a context manager.

    Args:
        target: HOST:PORT.
        port: to listen on, on loopback; 0: any.
        delay_s: of every chunk, for DELAY.

    Attributes:
        address: HOST:PORT where it listens; it keeps its port when it refuses and heals.
        carried: bytes that have gone either way.
        strikes: faults that were ordered, the latest last.
    """

    def __init__(self, target: str, port: int = 0, delay_s: float = 0.05) -> None:
        host, _, target_port = target.rpartition(":")
        self._target = (host.strip("[]"), int(target_port))
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._listener: asyncio.Task[None] | None = None
        self._connections: set[_Connection] = set()
        self._armed: list[Strike] = []
        self._delay_s = delay_s
        self._is_slow = False
        self._is_dark = False
        self.strikes: list[Strike] = []
        self.carried = dict.fromkeys(Direction, 0)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()

    @property
    def address(self) -> str:
        """HOST:PORT where students reach the target."""
        return f"127.0.0.1:{self._port}"

    def strike(
        self,
        fault: Fault,
        direction: Direction = Direction.TO_TEACHER,
        *,
        after_bytes: int | None = None,
    ) -> Strike:
        """Lets a fault strike all connections now, or one of them when bytes have gone through it.

        Args:
            fault: which.
            direction: of the bytes that are counted, doubled or cut; the other faults strike both.
            after_bytes: how many more have to pass in this direction; None: it strikes at once, or with the
                next chunk if it is about a chunk.

        Returns:
            Whether and when it strikes; never, if it is for open connections and there are none.
        """
        if after_bytes is None and fault in (Fault.DUPLICATE, Fault.TRUNCATE):
            after_bytes = 0
        strike = Strike(fault, direction, after_bytes or 0)
        self.strikes.append(strike)
        self._run(self._strike(strike, is_armed=after_bytes is not None))
        return strike

    def heal(self) -> None:
        """Ends DELAY, BLACKOUT and REFUSE, and forgets faults that have not struck."""
        self._run(self._heal())

    def _run(self, coroutine: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE_S)

    async def _strike(self, strike: Strike, *, is_armed: bool) -> None:
        if is_armed:
            self._armed.append(strike)
            return
        connections = tuple(self._connections)
        for connection in connections:
            self._befall(strike.fault, connection)
        await self._befall_all(strike.fault)
        if connections or strike.fault.stays:
            strike.tell()

    def _befall(self, fault: Fault, connection: _Connection) -> None:
        """Does to one connection what a fault does at once."""
        if fault in (Fault.CUT, Fault.RESET):
            self._connections.discard(connection)
            connection.shut(fault)
        elif fault is Fault.STALL:
            connection.flows.clear()

    async def _befall_all(self, fault: Fault) -> None:
        """Does what a fault does to all connections, those to come included."""
        if fault is Fault.DELAY:
            self._is_slow = True
        elif fault is Fault.BLACKOUT:
            self._is_dark = True
            for connection in self._connections:
                connection.flows.clear()
        elif fault is Fault.REFUSE:
            await self._stop_listening()

    async def _heal(self) -> None:
        self._is_slow, self._armed = False, []
        if self._is_dark:
            self._is_dark = False
            for connection in self._connections:
                connection.flows.set()
        if self._listener is None:
            await self._listen()

    async def _listen(self) -> None:
        listening = socket.create_server(("127.0.0.1", self._port))
        listening.settimeout(0)
        self._port = listening.getsockname()[1]
        self._listener = asyncio.create_task(self._accept(listening))

    async def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
            await asyncio.wait([listener])

    async def _close(self) -> None:
        await self._stop_listening()
        pumps = [pump for connection in self._connections for pump in connection.pumps]
        for connection in tuple(self._connections):
            self._befall(Fault.RESET, connection)
        if pumps:
            await asyncio.wait(pumps)

    async def _accept(self, listening: socket.socket) -> None:
        with listening:
            while True:
                student, _ = await self._loop.sock_accept(listening)
                await self._connect(student)

    async def _connect(self, student: socket.socket) -> None:
        teacher = socket.socket()
        for end in (student, teacher):
            end.settimeout(0)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.sock_connect(teacher, self._target)
        except OSError:  # nobody is there: the student must not think so
            _Connection(student, teacher).shut(Fault.RESET)
            return
        connection = _Connection(student, teacher)
        if not self._is_dark:
            connection.flows.set()
        self._connections.add(connection)
        ways = ((student, teacher, Direction.TO_TEACHER), (teacher, student, Direction.TO_STUDENT))
        connection.pumps = [asyncio.create_task(self._pump(connection, *way)) for way in ways]

    async def _pump(
        self, connection: _Connection, source: socket.socket, sink: socket.socket, direction: Direction
    ) -> None:
        """Carries the bytes of one direction until one of the ends, or a fault, ends the connection."""
        fault = Fault.RESET
        try:
            while chunk := await self._loop.sock_recv(source, _CHUNK_BYTES):
                self.carried[direction] += len(chunk)
                if self._is_slow:
                    await asyncio.sleep(self._delay_s)
                await connection.flows.wait()
                await self._carry(connection, chunk, sink, direction)
            fault = Fault.CUT
        except OSError:
            pass
        await connection.flows.wait()  # a stalled network does not tell of an end either
        if connection in self._connections:  # else a fault has ended it
            self._connections.discard(connection)
            connection.shut(fault)

    async def _carry(
        self, connection: _Connection, chunk: bytes, sink: socket.socket, direction: Direction
    ) -> None:
        """Sends a chunk on, up to where a fault strikes, and what is left of it after that."""
        for armed in [each for each in self._armed if each.direction is direction]:
            if len(chunk) <= armed.left_bytes:
                armed.left_bytes -= len(chunk)
                continue
            self._armed.remove(armed)
            head, chunk = chunk[: armed.left_bytes], chunk[armed.left_bytes :]
            if armed.fault is Fault.TRUNCATE:
                head += chunk[: len(chunk) // 2]
            elif armed.fault is Fault.DUPLICATE:
                head += chunk
            await self._loop.sock_sendall(sink, head)
            self._befall(Fault.RESET if armed.fault is Fault.TRUNCATE else armed.fault, connection)
            await self._befall_all(armed.fault)
            armed.tell()
            await connection.flows.wait()
            await asyncio.sleep(0)  # a cancelled pump ends here
        await self._loop.sock_sendall(sink, chunk)
