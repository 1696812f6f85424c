"""Students that say nothing, stop in the middle or never listen, many at a time, beside an honest one."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest
import torch

from benchmarks import teachers
from benchmarks.bare_server import bare_server
from preceptor.codec import CodecSpec, TeacherCodec
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1 import tensor_pb2 as tensors
from services.teacher.limits import LimitsConfig
from student_client import ClientOptions, TeacherTalk
from tests.test_tenant_file import invoke
from tests.toy_frames import MESSAGE_DIM, exchange, opening, set_codec
from tests.toy_http2 import PREFACE, RawConnection
from tests.toy_server import RawStudent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.toy_server import ToyServer

NAME = "authorization"
HIDDEN = 32  # of the teacher of benchmarks
CONVERSE = "/preceptor.v1.TeacherService/Converse"
NUM_STREAMS = 10_000
NUM_CHANNELS = 25  # of 400 streams; a connection takes some more
MANY = 100  # of what must not have come once by chance; also the conversations that the rude team may have
MIN_TURNS = 5  # of the honest student while ten thousand streams come and go, in the same two processes
MORE_STREAMS = 1000  # that come at a time, on a slow machine, until the honest student had its turns
MAX_STREAMS = 3 * NUM_STREAMS
SOON = 0.2
MAX_GROWTH_MB = 300


class Fortress:
    """A server in a process of its own that lets two teams in, and an honest student of one of them."""

    def __init__(self, address: str, honest: str, rude: str, folder: Path) -> None:
        self.address = address
        self.rude = [(NAME, f"Bearer {rude}")]
        # Multiprocessing may keep a child of its own, from an earlier test.
        children = psutil.Process().children()
        (self._process,) = (each for each in children if "benchmarks.bare_server" in each.cmdline())
        (folder / "honest.token").write_text(honest)
        self._options = ClientOptions(token_file=folder / "honest.token", answer_timeout_s=60)
        self._states = torch.randn(2, 3, 6)
        self._talk = self.enter()
        self._expected = self._ask()

    def enter(self) -> TeacherTalk:
        torch.manual_seed(0)
        return TeacherTalk.connect(
            f"preceptor://{self.address}",
            student_dim=6,
            message_dim=MESSAGE_DIM,
            message_len=2,
            reading="replace",
            deterministic=True,
            options=self._options,
        )

    def _ask(self) -> list[torch.Tensor]:
        self._talk.zero_grad()
        decoded = self._talk(self._states).decoded
        torch.autograd.backward(decoded.sum())
        gradients = [parameter.grad for parameter in self._talk.parameters()]
        return [decoded.detach(), *(each.clone() for each in gradients if each is not None)]

    @contextlib.contextmanager
    def besieged(self) -> Iterator[list[int]]:
        """While open, has the honest student ask again and again, and hold the server to its memory."""
        num_turns, ended = [0], threading.Event()
        before, most, failures = self._memory_mb(), [0.0], list[BaseException]()

        def watch() -> None:
            most[0] = max(most[0], self._memory_mb())

        def ask() -> None:
            assert all(map(torch.equal, self._ask(), self._expected))
            num_turns[0] += 1

        def repeat(what: Callable[[], None], pause_s: float) -> None:
            try:
                while not ended.wait(pause_s):
                    what()
            except BaseException as error:  # noqa: BLE001 - raised below
                failures.append(error)

        threads = [threading.Thread(target=repeat, args=each) for each in ((watch, 0.01), (ask, 0.02))]
        for thread in threads:
            thread.start()
        try:
            yield num_turns
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert num_turns[0] > 0
        assert self._talk.conversation.num_reconnects == 0
        assert most[0] - before < MAX_GROWTH_MB

    def close(self) -> None:
        self._talk.close()

    def _memory_mb(self) -> float:
        return float(self._process.memory_info().rss / 2**20)


@pytest.fixture(scope="module")
def fortress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fortress]:
    folder = tmp_path_factory.mktemp("fortress")
    file = folder / "tenants.yaml"
    honest, rude = invoke("add", file, "honest"), invoke("add", file, "rude", "--max-conversations", MANY)
    limits = LimitsConfig(max_open_s=1.0, max_idle_s=60.0)
    config = teachers.module(teachers.free_port(), folder)
    config = config.model_copy(update={"auth": "tokens", "tenants": file, "limits": limits})
    with bare_server(config, folder) as address:
        fortress = Fortress(address, honest, rude, folder)
        yield fortress
        fortress.close()


async def _stay_silent(address: str, metadata: Any, num_turns: list[int]) -> collections.Counter[str]:
    """Opens streams and says nothing on them, at least until an honest student had its turns.

    Returns:
        How many of them ended how.
    """
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(NUM_CHANNELS)]
    ends: collections.Counter[str] = collections.Counter()

    async def stay_silent(channel: grpc.aio.Channel) -> None:
        call: Any = channel.stream_stream(CONVERSE, response_deserializer=pb.ConverseResponse.FromString)
        try:
            answers = [answer async for answer in call(timeout=60, metadata=metadata)]
            ends[pb.Reason.Name(answers[-1].failed.reason) if answers else "nothing"] += 1
        except grpc.aio.AioRpcError as error:
            ends[error.code().name] += 1

    await asyncio.gather(*(stay_silent(channels[number % NUM_CHANNELS]) for number in range(NUM_STREAMS)))
    while num_turns[0] < MIN_TURNS and ends.total() < MAX_STREAMS:
        await asyncio.gather(
            *(stay_silent(channels[number % NUM_CHANNELS]) for number in range(MORE_STREAMS))
        )
    for channel in channels:
        await channel.close()
    return ends


def test_ten_thousand_strangers_who_say_nothing_disturb_nobody(fortress: Fortress) -> None:
    with fortress.besieged() as num_turns:
        ends = asyncio.run(_stay_silent(fortress.address, None, num_turns))
        num_meanwhile = num_turns[0]
    assert num_meanwhile >= MIN_TURNS
    # gRPC itself turns streams away when too many wait to be looked at.
    assert ends.keys() <= {"UNAUTHENTICATED", "CANCELLED", "UNAVAILABLE"}
    assert ends["UNAUTHENTICATED"] >= MANY
    assert ends.total() >= NUM_STREAMS


def test_ten_thousand_streams_of_one_team_leave_room_for_another(fortress: Fortress) -> None:
    with fortress.besieged() as num_turns:
        ends = asyncio.run(_stay_silent(fortress.address, fortress.rude, num_turns))
        num_meanwhile = num_turns[0]
    assert num_meanwhile >= MIN_TURNS
    told = {"REASON_PROTOCOL_VIOLATION", "REASON_OVERLOADED"}
    assert ends.keys() <= {*told, "CANCELLED", "UNAVAILABLE"}
    assert all(ends[reason] >= MANY for reason in told)
    assert ends.total() >= NUM_STREAMS
    talk = fortress.enter()
    assert talk(torch.randn(1, 2, 6)).decoded.shape == (1, 2, 6)
    talk.close()


def test_connections_that_say_nothing_or_little_disturb_nobody(fortress: Fortress) -> None:
    with contextlib.ExitStack() as stack, fortress.besieged():
        connections = [stack.enter_context(RawConnection(fortress.address)) for _ in range(200)]
        silent, slow, half, rude = (connections[start::4] for start in range(4))
        for index in range(len(PREFACE)):
            for connection in slow:
                connection.send(PREFACE[index : index + 1])
        metadata = {name: value.encode() for name, value in fortress.rude}
        for number, connection in enumerate((*half, *rude)):
            connection.greet()
            connection.converse(metadata if number < len(half) else {})
            connection.say(bytes(1 << 13), of=1 << (23 if number % 2 else 13))
        for connection in half:  # they are told that they opened nothing, whatever they began to say
            connection.read_until(b"nothing was opened in time" if connection in half[1::2] else b"frame")
        for connection in rude:
            connection.read_until(b"grpc-status")
        for connection in (*silent, *slow):
            connection.read_all()


def test_who_stops_within_a_frame_is_closed_in_time(start_server: Callable[..., ToyServer]) -> None:
    server = start_server(max_open_s=SOON, max_idle_s=SOON)
    frame = exchange(1).SerializeToString()
    with RawConnection(server.address) as opened, RawConnection(server.address) as unopened:
        for connection in (opened, unopened):
            connection.greet()
            connection.converse({})
        opened.say(opening().SerializeToString())
        opened.say(frame[:10], of=len(frame))
        unopened.say(opening().SerializeToString()[:-1], of=opening().ByteSize())
        unopened.read_until(b"nothing was opened in time")
        opened.read_until(b"grpc-status")
        server.wait_until(lambda: not server.servicer._visits)


def test_a_frame_that_claims_gigabytes_is_not_waited_for(server: ToyServer) -> None:
    with RawConnection(server.address) as connection:
        connection.greet()
        connection.converse({})
        connection.say(b"", of=2**32 - 1)
        assert b"larger than max" in connection.read_until(b"grpc-status")


def test_a_student_who_never_listens_takes_a_bounded_share_of_memory(fortress: Fortress) -> None:
    long = CodecSpec(message_dim=MESSAGE_DIM, message_len=64)
    content = torch.randn(512, 64, MESSAGE_DIM)  # 393 KB a turn, and as much a reply
    state = dict(TeacherCodec(long, HIDDEN).state_dict())
    turns = [exchange(turn, content, wants_gradient=False) for turn in range(1, 101)]
    with fortress.besieged() as num_turns, RawStudent(fortress.address, fortress.rude) as deaf:
        deaf.send(opening(long), set_codec(state=state), *turns)
        _await_turns(num_turns, 5)


def _await_turns(num_turns: list[int], count: int) -> None:
    target = num_turns[0] + count
    waiting = threading.Event()
    for _ in range(6000):
        if num_turns[0] >= target:
            return
        waiting.wait(0.01)
    raise AssertionError(f"{num_turns[0]} of {target} turns were answered")


def test_a_message_that_inflates_to_twenty_times_the_limit_is_refused(fortress: Fortress) -> None:
    bomb = bytes(20 * 2**24)
    with (
        grpc.insecure_channel(
            fortress.address, options=[("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
        ) as channel,
        fortress.besieged(),
    ):
        call: Any = channel.stream_stream(CONVERSE)
        gzip = {"compression": grpc.Compression.Gzip, "metadata": fortress.rude, "timeout": 60}
        with pytest.raises(grpc.RpcError) as refused:
            list(call(iter([opening().SerializeToString(), bomb]), **gzip))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in str(refused.value.details())


def test_two_bytes_a_tensor_do_not_become_hundreds(fortress: Fortress) -> None:
    many = set_codec(1, [tensors.NamedTensor()] * 1_000_000, complete=False)
    kinds = pb.ConverseRequest(observe=pb.Observe(turn=1, kinds=[pb.OBSERVATION_KIND_LOGITS] * 4_000_000))
    shape = tensors.Tensor(data_type=tensors.DATA_TYPE_INT64, shape=[1] * 4_000_000)
    inputs = pb.Inputs(tensors=[tensors.NamedTensor(name="ids", tensor=shape)])
    lengthy = pb.ConverseRequest(
        observe=pb.Observe(turn=2, kinds=[pb.OBSERVATION_KIND_LOGITS], inputs=inputs)
    )
    with fortress.besieged(), RawStudent(fortress.address, fortress.rude) as student:
        student.ask(opening())
        for frame in (many, kinds, lengthy):
            for _ in range(4):
                answer = student.ask(frame)
                while answer.HasField("credit"):
                    answer = student.receive()
                assert (
                    "00000, expected" in answer.failed.message or "sizes, expected" in answer.failed.message
                )
