"""The client: addresses, deadlines, what a student is told, threads and processes."""

from __future__ import annotations

import copy
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch

from preceptor.terms import ObservationKind, Reading
from student_client import (
    AccessError,
    ClientOptions,
    DeadlineExceededError,
    FrameTooLargeError,
    InvalidMessageError,
    TeacherClient,
    TeacherError,
    TeacherTalk,
    TeacherUnavailableError,
    UnsupportedByTeacherError,
)
from student_client.options import Address, parse_address
from tests.toy import HIDDEN, STUDENT_DIM
from tests.toy_frames import ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.teacher.families.base import Teacher
    from tests.toy_server import ToyServer

IMPATIENT = ClientOptions(connect_timeout_s=0.2, answer_timeout_s=0.2, deadline_s=0.5, initial_backoff_s=0.01)


@pytest.fixture
def silent_address() -> Iterator[str]:
    """An address where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def closed_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def _states(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, STUDENT_DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("address", "replicas"),
    [
        ("preceptor://127.0.0.1:41500", ("127.0.0.1:41500",)),
        ("localhost:1", ("localhost:1",)),
        ("preceptor://a:1, b.example:65535", ("a:1", "b.example:65535")),
        ("[::1]:41500", ("[::1]:41500",)),
    ],
)
def test_an_address_names_replicas(address: str, replicas: tuple[str, ...]) -> None:
    assert parse_address(address) == Address(replicas, is_secure=False)
    secure = parse_address("preceptors://" + address.removeprefix("preceptor://"))
    assert secure == Address(replicas, is_secure=True)
    assert TeacherClient(address).address == address


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":1", "host:0", "host:65536", "host:one", "a:1,", "http://host:1", "host:1/path"],
)
def test_another_form_of_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected preceptor://HOST:PORT") as caught:
        TeacherClient(address)
    assert f"address: got {address!r}" in str(caught.value)


@pytest.mark.parametrize("field", ["connect_timeout_s", "answer_timeout_s", "deadline_s", "max_backoff_s"])
def test_options_without_a_deadline_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        ClientOptions(**{field: 0})


def test_connecting_builds_the_codec_that_fits(server: ToyServer) -> None:
    address = f"preceptor://{server.address}"
    linear = TeacherTalk.connect(address, student_dim=6, message_dim=3, reading="beside", split_layer=2)
    assert linear.get_parameter("teacher_codec.decoder.body.weight").shape == (HIDDEN, 3)
    assert (linear.reading, linear.spec.message_len) == (Reading.BESIDE, None)
    deep = TeacherTalk.connect(
        address, student_dim=6, message_dim=3, message_len=2, hidden_dim=5, reading="replace"
    )
    assert deep.get_parameter("teacher_codec.encoder.body.0.weight").shape == (5, HIDDEN)
    assert deep(torch.ones(2, 6)).decoded.shape == (2, 6)
    deep.close()


def test_an_unreachable_teacher_is_unavailable_by_the_deadline(
    closed_address: str, silent_address: str, connect: Callable[..., TeacherTalk]
) -> None:
    for address, cause in ((closed_address, "UNAVAILABLE"), (silent_address, "no answer to open within 0.2")):
        with pytest.raises(TeacherUnavailableError, match=f"opened a conversation.*{address}: {cause}"):
            connect(address, options=IMPATIENT)(_states())
    both = TeacherClient(f"{closed_address},{silent_address}", IMPATIENT)
    with pytest.raises(TeacherUnavailableError, match=f"no replica of .*: {silent_address}: DEADLINE_EXC"):
        both.describe()


def test_one_replica_that_answers_is_enough(
    server: ToyServer, closed_address: str, connect: Callable[..., TeacherTalk]
) -> None:
    client = TeacherClient(f"{closed_address},{server.address}", ClientOptions(connect_timeout_s=5))
    assert client.describe().teacher.name == "toy-0"
    talk = connect(closed_address, server.address)
    assert torch.equal(talk(_states()).decoded, connect(server.address)(_states()).decoded)


def test_a_teacher_that_does_not_answer_exceeds_the_deadline(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    options = ClientOptions(answer_timeout_s=0.5, deadline_s=0.7, initial_backoff_s=0.01)
    talk = connect(server.address, options=options)
    server.queue.gate.clear()
    with pytest.raises(DeadlineExceededError, match=rf"turn 1: {server.address}: no answer to turn 1 within"):
        talk(_states())
    server.queue.gate.set()
    assert talk(_states()).decoded.shape == _states().shape
    assert talk.conversation.num_reconnects > 0
    assert talk.conversation.waiting_s > options.answer_timeout_s


def test_what_the_teacher_refuses_is_raised_and_the_conversation_goes_on(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(server.address, reading="add")
    good = {"ids": ids()}
    with pytest.raises(InvalidMessageError, match=r"message: got NaN or infinity"):
        talk(_states() * torch.inf, inputs=good)
    with pytest.raises(InvalidMessageError, match=r"inputs\[ids\]: got the value 37, expected 0 to 31"):
        talk(_states(), inputs={"ids": torch.full((2, 4), 37)})
    with pytest.raises(ValueError, match="inputs: got None, expected those of the rows for reading 'add'"):
        talk(_states())
    with pytest.raises(ValueError, match="hidden_states: got width"):
        talk(_states()[..., :1], inputs=good)
    with pytest.raises(ValueError, match="num_rounds: got 0"):
        talk(_states(), inputs=good, num_rounds=0)
    assert talk(_states(), inputs=good).decoded.shape == _states().shape
    assert talk.conversation.num_reconnects == 0


def test_what_the_teacher_cannot_do_is_unsupported(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk], headless_teacher: Teacher
) -> None:
    talk = connect(start_server(headless_teacher).address)
    with pytest.raises(UnsupportedByTeacherError, match="logits: got a teacher without a head"):
        talk.observe({"ids": ids()}, [ObservationKind.LOGITS])


def test_a_codec_the_teacher_refuses_is_raised_and_a_better_one_taken(
    server: ToyServer, connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(server.address)
    expected = talk(_states()).decoded
    bias = talk.get_parameter("teacher_codec.encoder.body.bias")
    good = bias.detach().clone()
    bias.data.fill_(torch.nan)
    with pytest.raises(InvalidMessageError, match=r"codec\[encoder\.body\.bias\]: got NaN or infinity"):
        talk(_states())
    bias.data.copy_(good)
    assert torch.equal(talk(_states()).decoded, expected)


def test_a_row_that_fits_no_frame_is_too_large(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(start_server(max_frame_bytes=4096).address, message_len=None)
    wide = torch.randn(1, 400, STUDENT_DIM)
    with pytest.raises(
        FrameTooLargeError, match=r"frame exchange: got .* bytes, expected at most 4096; send"
    ):
        talk(wide)
    assert talk(wide[:, :9]).decoded.shape == (1, 9, STUDENT_DIM)


def test_a_frame_that_grpc_refuses_is_too_large_and_not_sent_again(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    talk = connect(start_server(grpc_limit=3000).address, message_len=None)
    with pytest.raises(FrameTooLargeError, match=r"RESOURCE_EXHAUSTED: .*larger than max"):
        talk(torch.randn(1, 400, STUDENT_DIM))


class _Guarded(grpc.GenericRpcHandler):
    """Denies everything."""

    def service(self, handler_call_details: Any) -> Any:
        def deny(_request: Any, context: grpc.ServicerContext) -> Any:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "who are you?")

        if handler_call_details.method.endswith("Converse"):
            return grpc.stream_stream_rpc_method_handler(deny)
        return grpc.unary_unary_rpc_method_handler(deny)


@pytest.mark.parametrize(
    ("handlers", "error", "message"),
    [
        ((), TeacherError, "UNIMPLEMENTED: .*no teacher is served there"),
        ((_Guarded(),), AccessError, "PERMISSION_DENIED: who are you"),
    ],
)
def test_what_no_retry_can_mend_is_raised_at_once(
    connect: Callable[..., TeacherTalk], handlers: Any, error: type[TeacherError], message: str
) -> None:
    server = grpc.server(ThreadPoolExecutor(2), handlers=handlers)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with pytest.raises(error, match=message):
        TeacherClient(address).describe()
    with pytest.raises(error, match=message):
        connect(address)(_states())
    server.stop(None).wait(30)


def test_two_threads_share_a_conversation(server: ToyServer, connect: Callable[..., TeacherTalk]) -> None:
    talk = connect(server.address, deterministic=True)  # else rounding depends on who shares a batch
    batches = [torch.randn(2, 4, STUDENT_DIM) for _ in range(8)]
    expected = [talk(batch).decoded for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda batch: talk(batch).decoded, batches))
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    server.wait_until(lambda: len(server.servicer._visits) == 1)


def test_closing_ends_the_conversation_and_the_next_turn_starts_another(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address)
    talk.close()
    first = talk(_states())
    talk.close()
    server.wait_until(lambda: not server.servicer._visits)
    torch.autograd.backward(first.decoded.sum())  # a turn of the closed conversation is replayed
    assert talk.get_parameter("student_encoder.body.weight").grad is not None
    assert torch.equal(talk(_states()).decoded, first.decoded)


def test_a_turn_in_flight_learns_that_its_conversation_was_closed(
    start_server: Callable[..., ToyServer], connect: Callable[..., TeacherTalk]
) -> None:
    server = start_server()
    talk = connect(server.address)
    talk(_states())
    server.queue.await_arrivals()
    server.queue.gate.clear()
    pending = talk.start(_states())
    server.queue.await_arrivals()
    talk.close()
    with pytest.raises(TeacherUnavailableError, match="closed by the student"):
        pending.result()
    server.queue.gate.set()
    server.wait_until(lambda: not server.servicer._visits)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda talk: pickle.loads(pickle.dumps(talk))])  # noqa: S301
def test_a_copy_of_a_talk_has_a_conversation_of_its_own(
    server: ToyServer, connect: Callable[..., TeacherTalk], copied: Callable[[TeacherTalk], TeacherTalk]
) -> None:
    talk = connect(server.address)
    expected = talk(_states()).decoded
    twin = copied(talk)
    assert twin._sender._handle is None
    assert torch.equal(twin(_states()).decoded, expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert not torch.equal(twin(_states()).decoded, expected)
    assert torch.equal(talk(_states()).decoded, expected)
    assert twin.conversation is not talk.conversation
    twin.close()
