"""The real servicer under a real gRPC server, on a thread of this process, for tests.

A server can be killed and started again on its port, and its teacher can be held before its next turn, so
that a test decides what has happened when a stream breaks.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.status_pb2_grpc import add_StatusServiceServicer_to_server
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub, add_TeacherServiceServicer_to_server
from services.teacher.certificates import add_port
from services.teacher.connections import CONNECTION_OPTIONS
from services.teacher.engine import Engine
from services.teacher.errors import OverloadedError
from services.teacher.gate import gate_of
from services.teacher.graphs import GraphStore
from services.teacher.health import add_health_to_server
from services.teacher.loading import build_queue
from services.teacher.observations import ObservationCache
from services.teacher.servicer import TeacherServicer
from services.teacher.teaching import Teaching

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Self

    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher
    from services.teacher.gate import Gate
    from services.teacher.work import Work

__all__ = ["GatedQueue", "RawStudent", "ToyServer"]

_PATIENCE_S = 30.0
_FRAME_OVERHEAD_BYTES = 64 << 10

ResultT = TypeVar("ResultT")


class GatedQueue:
    """A service's queue that hands work out only while its gate is open, and tells when work comes in."""

    def __init__(
        self, teacher: Teacher, graphs: GraphStore, config: ServiceConfig, gate: Gate | None = None
    ) -> None:
        self._queue = build_queue(teacher, config, graphs, gate)
        self.finished, self.gone = self._queue.finished, self._queue.gone
        self.gate = threading.Event()
        self.gate.set()
        self._arrived = threading.Semaphore(0)
        self._refused = threading.Semaphore(0)
        self.num_admitted = 0

    @property
    def num_queued_tokens(self) -> int:
        return self._queue.num_queued_tokens

    def admit(self, work: Work) -> None:
        try:
            self._queue.admit(work)
        except OverloadedError:
            self._refused.release()
            raise
        self.num_admitted += 1
        self._arrived.release()

    def next_batch(self) -> list[Work] | None:
        batch = self._queue.next_batch()
        self.gate.wait()
        return batch

    def close(self) -> None:
        self._queue.close()
        self.gate.set()

    def await_arrivals(self, count: int = 1) -> None:
        """Waits until `count` more pieces of work were admitted than were waited for before."""
        for _ in range(count):
            assert self._arrived.acquire(timeout=_PATIENCE_S), "no work arrived"

    def await_refusals(self, count: int = 1) -> None:
        """Waits until `count` more pieces of work were refused."""
        for _ in range(count):
            assert self._refused.acquire(timeout=_PATIENCE_S), "no work was refused"


class ToyServer:
    """A teacher on a loopback port; `start` it, then `kill` and `start` it as often as needed.

    `grpc_limit` is what gRPC itself takes, in bytes a frame; by default what the config's limits promise.
    `keepalive_s` is how often it asks students whether they are there, and how soon they have to answer.
    """

    def __init__(
        self,
        teacher: Teacher,
        config: ServiceConfig,
        grpc_limit: int | None = None,
        keepalive_s: float | None = None,
    ) -> None:
        self.teacher = teacher
        self.config = config
        self._grpc_limit = grpc_limit or config.limits.max_frame_bytes + _FRAME_OVERHEAD_BYTES
        self._keepalive = [] if keepalive_s is None else _keepalive(round(keepalive_s * 1000))
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="toy-server", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        graphs = GraphStore(self.config.engine.max_retained_bytes)
        self.gate = gate_of(self.config)
        self.queue = GatedQueue(self.teacher, graphs, self.config, self.gate)
        cache = ObservationCache(self.config.cache.max_bytes)
        teaching = Teaching(self.teacher, cache, shares_cache=self.config.cache.shared)
        self.engine = Engine(teaching, queue=self.queue, graphs=graphs)
        self.engine.start()
        self.servicer = TeacherServicer(self.engine, self.config, self.gate)
        self.call(self._start())

    def kill(self) -> None:
        """Breaks every stream at once; what the replica held is gone."""
        self.call(self._server.stop(None))
        self.engine.stop()

    def close(self) -> None:
        """Kills the server and ends its thread."""
        self.kill()
        self.wait_until(lambda: len(asyncio.all_tasks()) == 1)  # the one that looks
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, coroutine: Coroutine[None, None, ResultT]) -> ResultT:
        """Runs a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE_S)

    def drain(self, closes_in_s: float = 1.0) -> None:
        async def drain() -> None:
            self.servicer.drain(closes_in_s)

        self.call(drain())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Lets the server's loop run until a condition holds."""

        async def check() -> None:
            async with asyncio.timeout(_PATIENCE_S):
                while not condition():  # noqa: ASYNC110 - what is waited for has no event
                    await asyncio.sleep(0.001)

        self.call(check())

    async def _start(self) -> None:
        limit = self._grpc_limit
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.so_reuseport", 0),
                *CONNECTION_OPTIONS,
                *self._keepalive,
            ]
        )
        add_TeacherServiceServicer_to_server(self.servicer, self._server)  # type: ignore[no-untyped-call]
        add_StatusServiceServicer_to_server(self.servicer, self._server)  # type: ignore[no-untyped-call]
        add_health_to_server(self.servicer, self._server)
        self.port = add_port(self._server, f"127.0.0.1:{self.port}", self.config.tls)
        await self._server.start()


def _keepalive(period_ms: int) -> list[tuple[str, int]]:
    return [
        ("grpc.keepalive_time_ms", period_ms),
        ("grpc.keepalive_timeout_ms", period_ms),
        ("grpc.http2.ping_timeout_ms", period_ms),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10),
    ]


class RawStudent:
    """A student that writes its frames by hand; leaving its context breaks the stream without a word."""

    def __init__(self, address: str, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._frames: queue.SimpleQueue[pb.ConverseRequest | None] = queue.SimpleQueue()
        self._stub = TeacherServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._call: Any = self._stub.Converse(
            iter(self._frames.get, None), timeout=_PATIENCE_S, metadata=metadata
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call.cancel()
        self._frames.put(None)
        self._channel.close()

    def describe(self) -> pb.DescribeTeacherResponse:
        response: pb.DescribeTeacherResponse = self._stub.DescribeTeacher(
            pb.DescribeTeacherRequest(), timeout=_PATIENCE_S
        )
        return response

    def send(self, *frames: pb.ConverseRequest) -> None:
        for frame in frames:
            self._frames.put(frame)

    def done_writing(self) -> None:
        self._frames.put(None)

    def receive(self) -> pb.ConverseResponse:
        """Waits for the next answer."""
        answer: pb.ConverseResponse = next(self._call)
        return answer

    def ask(self, *frames: pb.ConverseRequest) -> pb.ConverseResponse:
        self.send(*frames)
        return self.receive()

    def rest(self) -> list[pb.ConverseResponse]:
        """Waits until the replica ends the stream and returns the answers until then."""
        return list(self._call)
