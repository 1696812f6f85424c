"""A bare teacher server that counts what passes its wire and what its cache holds.

    python -m benchmarks.counting_server CONFIG.json

A line on standard input asks for a report, one JSON object on standard output, and sets the counts back.
Serves until its standard input is closed, so it never outlives who started it.

Bytes are those of the protocol's messages as they are encoded; gRPC and HTTP/2 add a few dozen a frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import grpc

from preceptor.v1.teacher_pb2_grpc import add_TeacherServiceServicer_to_server
from services.teacher.config import ServiceConfig
from services.teacher.local import wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from preceptor.v1 import teacher_pb2 as pb
    from preceptor.v1 import tensor_pb2 as tensors

__all__ = ["CountingServer", "counting_server"]

_READY_TIMEOUT_S = 120.0


class CountingServer:
    """A server in a process of its own.

    Attributes:
        address: `preceptor://HOST:PORT`.
    """

    def __init__(self, address: str, process: subprocess.Popen[str]) -> None:
        self.address = address
        self._process = process

    def report(self) -> dict[str, int]:
        """Returns the counts since the last report.

        Returns:
            Bytes of "talk" (messages, replies and the gradients of both), "observations" (values and their
            gradients), "codec" (updates and gradients), "inputs" and "total" (whole frames); "rows" that the
            teacher was to read itself, also ahead of their turn, those it had "cached", and the "cache_bytes"
            in memory now.
        """
        _opened(self._process.stdin).write("\n")
        _opened(self._process.stdin).flush()
        counts: dict[str, int] = json.loads(_opened(self._process.stdout).readline())
        return counts


def _opened(pipe: IO[str] | None) -> IO[str]:
    """Returns a pipe of a process that was started with pipes."""
    if pipe is None:
        raise ValueError("pipe: got None, expected a process with pipes")
    return pipe


@contextlib.contextmanager
def counting_server(config: ServiceConfig, folder: Path) -> Iterator[CountingServer]:
    """Runs a server while open.

    Args:
        config: of the service.
        folder: where the config is written to.
    """
    path = folder / "counting_server.json"
    path.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "benchmarks.counting_server", str(path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:  # noqa: S603 - our own module
        try:
            wait_until_ready(config, _READY_TIMEOUT_S)
            yield CountingServer(f"preceptor://{config.host}:{config.port}", process)
        finally:
            process.communicate()


class _Counts(grpc.aio.ServerInterceptor):
    """Counts the frames of all conversations."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps how a conversation's frames are read and written."""
        handler = await continuation(handler_call_details)
        if not handler_call_details.method.endswith("/Converse"):
            return handler

        def read(data: bytes) -> pb.ConverseRequest:
            request: pb.ConverseRequest = handler.request_deserializer(data)
            self.counts.update(_request_counts(request), total=len(data))
            return request

        def write(response: pb.ConverseResponse) -> bytes:
            data: bytes = handler.response_serializer(response)
            self.counts.update(_response_counts(response), total=len(data))
            return data

        return grpc.stream_stream_rpc_method_handler(handler.stream_stream, read, write)


def _request_counts(request: pb.ConverseRequest) -> dict[str, int]:
    exchange, observe = request.exchange, request.observe
    match request.WhichOneof("frame"):
        case "exchange":
            num_rows = exchange.message.shape[0] if exchange.HasField("inputs") else 0
            return {
                "talk": exchange.message.ByteSize(),
                "inputs": exchange.inputs.ByteSize(),
                "rows": num_rows,
            }
        case "observe":
            return {"inputs": observe.inputs.ByteSize(), "rows": _num_rows(observe)}
        case "set_codec":
            return {"codec": _num_bytes(request.set_codec.tensors)}
        case "backward":
            talk = _num_bytes(each for each in request.backward.gradients if each.name == "reply")
            return {"talk": talk, "observations": _num_bytes(request.backward.gradients) - talk}
    return {}


def _response_counts(response: pb.ConverseResponse) -> dict[str, int]:
    gradients = response.gradients
    match response.WhichOneof("frame"):
        case "reply":
            cached = response.reply.receipt.num_cached_rows
            return {"talk": response.reply.reply.ByteSize(), "cached": cached}
        case "observation":
            cached = response.observation.receipt.num_cached_rows
            return {"observations": _num_bytes(response.observation.values), "cached": cached}
        case "gradients":
            return {"talk": gradients.message.ByteSize(), "codec": _num_bytes(gradients.codec)}
    return {}


def _num_bytes(named: Iterable[tensors.NamedTensor]) -> int:
    return sum(each.tensor.ByteSize() for each in named)


def _num_rows(observe: pb.Observe) -> int:
    return len(observe.inputs.texts) or observe.inputs.tensors[0].tensor.shape[0]


async def _serve(config: ServiceConfig) -> None:
    # Imported by the server's process only.
    from services.teacher.loading import load_engine
    from services.teacher.servicer import TeacherServicer

    engine = load_engine(config)
    cache = engine.cache
    if cache is None:
        raise ValueError(f"cache.max_bytes: got {config.cache.max_bytes}, expected a cache to look into")
    limit = config.limits.max_frame_bytes
    interceptor = _Counts()
    server = grpc.aio.server(
        interceptors=(interceptor,),
        options=[("grpc.max_send_message_length", limit), ("grpc.max_receive_message_length", limit)],
    )
    add_TeacherServiceServicer_to_server(TeacherServicer(engine, config), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"{config.host}:{config.port}")
    await server.start()
    while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        print(json.dumps({**interceptor.counts, "cache_bytes": cache.num_bytes}), flush=True)
        interceptor.counts.clear()
    await server.stop(grace=None)
    engine.stop()


if __name__ == "__main__":
    asyncio.run(_serve(ServiceConfig.model_validate_json(Path(sys.argv[1]).read_text())))
