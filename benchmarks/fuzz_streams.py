"""Good streams with broken bytes, sent to a real server beside a bystander."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import grpc
import psutil

from benchmarks.fuzz_found import heard
from benchmarks.fuzz_frames import broken, good_stream
from preceptor.v1 import teacher_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.fuzz_found import Found

__all__ = ["send_streams"]

_CONVERSE = "/preceptor.v1.TeacherService/Converse"
_STREAMS_AT_A_TIME = 32
_NUM_EXCHANGES = 2  # of a good stream
_PATIENCE_S = 60.0


async def send_streams(target: str, hidden_dim: int, number: int, found: Found) -> None:
    """Sends broken streams to a server, many at a time, with a bystander between them."""
    frames_of = [frame.SerializeToString() for frame in good_stream(hidden_dim)]
    bystander = [frame.SerializeToString() for frame in good_stream(hidden_dim, deterministic=True)]
    numbers = random.Random(0)
    (server,) = psutil.Process().children()
    async with grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        expected = await _ask(channel, bystander)
        start_mb = None
        while found.inputs["streams"] < number:
            batch = []
            for _ in range(_STREAMS_AT_A_TIME):
                start = numbers.randrange(len(frames_of))
                sent = [*frames_of[:start], *(broken(each, numbers) for each in frames_of[start:])]
                found.inputs["streams"] += len(frames_of) - start
                batch.append(_stream(channel, sent, found))
            *_, got = await asyncio.gather(*batch, _ask(channel, bystander))
            found.bystanders_turns += 1
            found.disturbed_turns += got != expected
            if start_mb is None and found.inputs["streams"] > number / 4:
                start_mb = server.memory_info().rss / 2**20  # caches and pools are filled
        found.growth_mb = server.memory_info().rss / 2**20 - (start_mb or 0.0)


def _call(channel: grpc.aio.Channel, sent: AsyncIterator[bytes] | None = None) -> Any:
    converse: Any = channel.stream_stream(_CONVERSE, response_deserializer=pb.ConverseResponse.FromString)
    return converse(sent, timeout=_PATIENCE_S)


async def _ask(channel: grpc.aio.Channel, sent: list[bytes]) -> dict[tuple[str, int], bytes]:
    """Holds a bystander's conversation: its gradients follow their reply. Returns what it heard."""
    call = _call(channel)
    answers: list[pb.ConverseResponse] = []
    *before, backward, close = sent
    for frame in before:
        await call.write(frame)
    while len(heard(answers)) < _NUM_EXCHANGES:
        answers.append(await call.read())
    await call.write(backward)
    while len(heard(answers)) < _NUM_EXCHANGES + 1:
        answers.append(await call.read())
    await call.write(close)
    await call.done_writing()
    return heard(answers)


async def _stream(channel: grpc.aio.Channel, sent: list[bytes], found: Found) -> None:
    """Sends one stream and counts what its frames were refused for."""
    try:
        async for answer in _call(channel, _all(sent)):
            found.take(answer)
    except grpc.aio.AioRpcError as error:
        # Bytes that are no message may end a stream before our code sees them.
        if error.code() not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            found.crashes.append(f"stream: {error.code().name}: {error.details()}")
        found.reasons[f"stream ended with {error.code().name}"] += 1


async def _all(sent: list[bytes]) -> AsyncIterator[bytes]:
    for each in sent:
        yield each
        await asyncio.sleep(0)
