"""One address, several replicas: a student finds them, and finds them again."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch

from preceptor.v1 import teacher_pb2 as pb
from student_client import ClientOptions, TeacherClient, TeacherTalk, TeacherUnavailableError, background
from student_client.replicas import ReplicaFinder
from tests.conftest import QUICK
from tests.toy import STUDENT_DIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.toy_server import ToyServer

IMPATIENT = ClientOptions(deadline_s=0.5, initial_backoff_s=0.01)
FOUND_WITHIN_S = 5.0


class _Directory(grpc.GenericRpcHandler):
    """Says which replicas there are, and does nothing else; at an address of its own.

    Attributes:
        replicas: the addresses it answers with.
        questions: what it was asked, whether a conversation is to be opened.
    """

    def __init__(self) -> None:
        self.replicas: list[str] = []
        self.questions: list[bool] = []
        self._asked = threading.Semaphore(0)
        self._server = grpc.server(ThreadPoolExecutor(2), handlers=[self])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, handler_call_details: Any) -> Any:
        if not handler_call_details.method.endswith("/FindReplicas"):
            return None
        return grpc.unary_unary_rpc_method_handler(
            self._find,
            request_deserializer=pb.FindReplicasRequest.FromString,
            response_serializer=pb.FindReplicasResponse.SerializeToString,
        )

    def stop(self) -> None:
        self._server.stop(None).wait(30)

    def await_questions(self, count: int) -> None:
        """Waits until `count` more questions were asked than were waited for before."""
        for _ in range(count):
            assert self._asked.acquire(timeout=30), "nobody asked"

    def _find(self, request: pb.FindReplicasRequest, _: grpc.ServicerContext) -> pb.FindReplicasResponse:
        self.questions.append(request.opens_conversation)
        self._asked.release()
        return pb.FindReplicasResponse(replicas=[pb.Replica(address=each) for each in self.replicas])


@pytest.fixture
def directory() -> Iterator[_Directory]:
    directory = _Directory()
    yield directory
    directory.stop()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def _states() -> torch.Tensor:
    return torch.randn(2, 4, STUDENT_DIM, generator=torch.Generator().manual_seed(0))


def _target(talk: TeacherTalk) -> str:
    """Where a talk's stream leads to."""
    conversation = talk.conversation._conversation
    assert conversation is not None
    assert conversation._stream is not None
    return conversation._stream.target


def _find(finder: ReplicaFinder) -> list[str]:
    return background.run(finder.find(opens_conversation=True))


def test_a_conversation_goes_to_the_first_replica_that_is_named(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], directory: _Directory
) -> None:
    servers = [start_server(), start_server()]
    for first, second in (servers, servers[::-1]):
        directory.replicas = [first.address, second.address]
        talk = connect(directory.address)
        talk(_states())
        assert _target(talk) == first.address
    assert TeacherClient(f"preceptor://{directory.address}").describe().teacher.name == "toy-0"
    assert directory.questions == [True, True, False]


def test_a_replica_without_room_is_passed_over(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], directory: _Directory
) -> None:
    servers = [start_server(max_conversations=0), start_server()]
    directory.replicas = [server.address for server in servers]
    talk = connect(directory.address)
    talk(_states())
    assert _target(talk) == servers[1].address
    assert directory.questions == [True]


def test_a_replica_that_comes_back_on_another_port_is_found(
    start_server: Callable[..., ToyServer],
    connect: Callable[..., TeacherTalk],
    directory: _Directory,
    pool: ThreadPoolExecutor,
) -> None:
    server = start_server()
    directory.replicas = [server.address]
    talk = connect(directory.address)
    expected = talk(_states()).decoded
    server.kill()
    pending = pool.submit(lambda: talk(_states()).decoded)
    directory.await_questions(4)  # it has looked for it in vain
    old_port, server.port = server.port, 0
    server.start()
    assert server.port != old_port
    directory.replicas = [server.address]
    start_s = time.monotonic()
    assert torch.equal(pending.result(60), expected)
    assert time.monotonic() - start_s < FOUND_WITHIN_S
    assert _target(talk) == server.address


def test_an_old_replica_on_the_list_does_not_keep_a_student_from_the_next(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], directory: _Directory
) -> None:
    servers = [start_server(), start_server()]
    directory.replicas = [server.address for server in servers]
    talk = connect(directory.address)
    expected = talk(_states()).decoded
    servers[0].kill()
    start_s = time.monotonic()
    assert torch.equal(talk(_states()).decoded, expected)
    assert time.monotonic() - start_s < FOUND_WITHIN_S
    assert _target(talk) == servers[1].address
    servers[0].start()


def test_replicas_are_remembered_when_the_directory_is_gone(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], directory: _Directory
) -> None:
    servers = [start_server(), start_server()]
    directory.replicas = [server.address for server in servers]
    talk = connect(directory.address)
    expected = talk(_states()).decoded
    directory.stop()
    servers[0].kill()
    assert torch.equal(talk(_states()).decoded, expected)
    assert _target(talk) == servers[1].address
    servers[0].start()


def test_a_draining_replica_answers_its_turns_and_new_ones_go_elsewhere(
    start_server: Callable[..., ToyServer],
    connect: Callable[..., TeacherTalk],
    directory: _Directory,
    pool: ThreadPoolExecutor,
) -> None:
    first, second = start_server(), start_server()
    directory.replicas = [first.address, second.address]
    talk = connect(directory.address)
    expected = talk(_states()).decoded
    first.queue.await_arrivals()
    first.queue.gate.clear()
    old = talk.start(_states())
    first.queue.await_arrivals()
    stream = talk.conversation._conversation._stream  # type: ignore[union-attr]
    directory.replicas = [second.address]
    first.drain()
    first.wait_until(lambda: not stream.usable)  # type: ignore[union-attr]
    assert torch.equal(talk(_states()).decoded, expected)
    assert _target(talk) == second.address
    first.queue.gate.set()
    heard = old.result()
    assert torch.equal(heard.decoded, expected)
    first.wait_until(lambda: not first.servicer._visits)  # the last answer closed the stream
    torch.autograd.backward(heard.decoded.sum())
    assert talk.conversation.num_reconnects == 1


def test_a_directory_without_replicas_is_unavailable_not_wrong(
    start_server: Callable[..., ToyServer],
    connect: Callable[..., TeacherTalk],
    directory: _Directory,
    pool: ThreadPoolExecutor,
) -> None:
    with pytest.raises(TeacherUnavailableError, match="UNIMPLEMENTED"):
        TeacherClient(directory.address).describe()
    with pytest.raises(TeacherUnavailableError, match="no replica opened a conversation in time"):
        connect(directory.address, options=IMPATIENT)(_states())
    pending = pool.submit(lambda: connect(directory.address)(_states()))
    directory.await_questions(len(directory.questions) + 2)
    directory.replicas = [start_server().address]
    assert pending.result(60).decoded.shape == _states().shape


def test_the_finder_asks_seeds_then_what_it_learned_and_ends_with_the_seeds(
    start_server: Callable[..., ToyServer], directory: _Directory
) -> None:
    alone = start_server().address
    directory.replicas = ["127.0.0.1:1", "127.0.0.1:2"]
    finder = ReplicaFinder([directory.address, alone], QUICK)
    assert _find(finder) == [*directory.replicas, directory.address, alone]
    directory.stop()
    assert _find(finder) == [alone, directory.address]
    assert _find(ReplicaFinder(["127.0.0.1:1"], QUICK)) == ["127.0.0.1:1"]


def test_a_seed_that_does_not_tell_does_not_end_the_search(
    start_server: Callable[..., ToyServer], directory: _Directory
) -> None:
    alive = start_server().address
    mute = grpc.server(ThreadPoolExecutor(1))
    refuses = f"127.0.0.1:{mute.add_insecure_port('127.0.0.1:0')}"
    mute.start()
    directory.replicas = [alive]
    finder = ReplicaFinder([directory.address, refuses], QUICK)
    assert _find(finder) == [alive, directory.address, refuses]
    directory.stop()
    assert _find(finder) == [alive, directory.address, refuses]
    assert _find(ReplicaFinder(["127.0.0.1:1", refuses], QUICK)) == [refuses, "127.0.0.1:1"]
    mute.stop(None).wait(30)
