"""A network that cuts, resets, delays, stalls, repeats or garbles: a student learns the same, or is told."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.certificates import Authority
from benchmarks.fault_proxy import FaultProxy
from benchmarks.faults import Direction, Fault
from student_client import ClientOptions, DeadlineExceededError, TeacherTalk, TeacherUnavailableError
from student_client.options import TlsOptions
from tests.test_tls import tls_of
from tests.toy import STUDENT_DIM
from tests.toy_server import ToyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher

Weights = dict[str, torch.Tensor]

NUM_STEPS = 4
DISTURBED_STEP = 2
CODEC_WIDTH = 4096  # so that its update is many chunks
HALF_A_CODEC_BYTES = 150_000
HASTY = ClientOptions(
    connect_timeout_s=1, answer_timeout_s=1, deadline_s=60, initial_backoff_s=0.01, max_backoff_s=0.1
)
BREAKING = [Fault.CUT, Fault.RESET, Fault.STALL, Fault.DUPLICATE, Fault.TRUNCATE]
PATIENCE_S = 60


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def secure_server(
    tiny_teacher: Teacher, service_config: ServiceConfig, authority: Authority
) -> Iterator[ToyServer]:
    """Under TLS: only it can tell bytes that a broken middlebox repeats from those that were sent."""
    # Where a stalled network has taken an answer halfway, a ping can't follow it: it counts as unread or,
    # once gRPC has all of it, its student as idle.
    limits = service_config.limits.model_copy(update={"max_unread_s": 3.0, "max_idle_s": 8.0})
    config = service_config.model_copy(update={"tls": tls_of(authority), "limits": limits})
    server = ToyServer(tiny_teacher, config, keepalive_s=1.0)
    server.start()
    yield server
    server.close()


@pytest.fixture
def proxy(secure_server: ToyServer) -> Iterator[FaultProxy]:
    with FaultProxy(secure_server.address, delay_s=0.02) as proxy:
        yield proxy


@pytest.fixture
def join(
    connect: Callable[..., TeacherTalk], authority: Authority
) -> Callable[[str, ClientOptions], TeacherTalk]:
    """Starts a talk under TLS whose results are the same to the last bit."""

    def build(address: str, options: ClientOptions = HASTY) -> TeacherTalk:
        options = options.model_copy(update={"tls": TlsOptions(ca_file=authority.ca_file)})
        return connect(f"preceptors://{address}", options=options, hidden_dim=CODEC_WIDTH, deterministic=True)

    return build


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Weights]:
    """What is learnt without any fault, once it is known."""
    return {}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def states_of(step: int) -> torch.Tensor:
    return torch.randn(2, 4, STUDENT_DIM, generator=torch.Generator().manual_seed(step))


def train(
    talk: TeacherTalk,
    before: Callable[[], object] = lambda: None,
    between: Callable[[], object] = lambda: None,
    backward: Callable[[torch.Tensor], object] = torch.autograd.backward,
) -> Weights:
    """Trains a few steps and returns all weights; something else may happen in one of them."""
    optimizer = torch.optim.AdamW(talk.parameters(), lr=1e-2)
    for step in range(NUM_STEPS):
        is_disturbed = step == DISTURBED_STEP
        if is_disturbed:
            before()
        heard = talk(states_of(step))
        if is_disturbed:
            between()
        optimizer.zero_grad()
        (backward if is_disturbed else torch.autograd.backward)(heard.decoded.square().mean())
        optimizer.step()
        talk.push_codec()
    return {name: weight.detach().clone() for name, weight in talk.named_parameters()}


def assert_same(got: Weights, expected: Weights) -> None:
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.fixture
def expected(
    secure_server: ToyServer, join: Callable[..., TeacherTalk], undisturbed: dict[str, Weights]
) -> Weights:
    if not undisturbed:
        talk = join(secure_server.address)
        undisturbed["weights"] = train(talk)
        talk.close()
    return undisturbed["weights"]


def forgets(server: ToyServer) -> None:
    """Waits until a server holds no conversation any more."""
    server.wait_until(lambda: not server.servicer._visits)


@pytest.mark.parametrize("fault", [*BREAKING, Fault.DELAY])
@pytest.mark.parametrize("point", ["before a message", "between reply and backward"])
def test_a_fault_between_turns_changes_nothing(
    point: str,
    fault: Fault,
    proxy: FaultProxy,
    secure_server: ToyServer,
    join: Callable[..., TeacherTalk],
    expected: Weights,
) -> None:
    talk = join(proxy.address)
    strike = partial(proxy.strike, fault)
    got = train(talk, before=strike) if point == "before a message" else train(talk, between=strike)
    assert [each.wait() for each in proxy.strikes] == [True]
    assert_same(got, expected)
    assert talk.conversation.num_reconnects > 0 or fault is Fault.DELAY
    talk.close()
    forgets(secure_server)


@pytest.mark.parametrize("fault", [*BREAKING, Fault.DELAY])
def test_a_fault_while_gradients_are_computed_changes_nothing(
    fault: Fault,
    proxy: FaultProxy,
    secure_server: ToyServer,
    join: Callable[..., TeacherTalk],
    expected: Weights,
    pool: ThreadPoolExecutor,
) -> None:
    gate = secure_server.queue.gate

    def backward(loss: torch.Tensor) -> None:
        computed = secure_server.queue.num_admitted
        gate.clear()
        try:
            pending = pool.submit(torch.autograd.backward, loss)
            secure_server.wait_until(lambda: secure_server.queue.num_admitted > computed)
            proxy.strike(fault, Direction.TO_STUDENT)
        finally:
            gate.set()
        pending.result(PATIENCE_S)

    talk = join(proxy.address)
    got = train(talk, backward=backward)
    assert [each.wait() for each in proxy.strikes] == [True]
    assert_same(got, expected)
    talk.close()
    forgets(secure_server)


@pytest.mark.parametrize("fault", [*BREAKING, Fault.DELAY])
@pytest.mark.parametrize("direction", list(Direction))
def test_a_fault_in_the_midst_of_a_codec_or_its_gradients_changes_nothing(
    direction: Direction,
    fault: Fault,
    proxy: FaultProxy,
    secure_server: ToyServer,
    join: Callable[..., TeacherTalk],
    expected: Weights,
) -> None:
    talk = join(proxy.address)
    strike = partial(proxy.strike, fault, direction, after_bytes=HALF_A_CODEC_BYTES)
    # The update follows the gradients of the step that is disturbed.
    got = train(talk, between=strike)
    assert [each.wait() for each in proxy.strikes] == [True]
    assert_same(got, expected)
    assert talk.conversation.num_reconnects > 0 or fault is Fault.DELAY
    talk.close()
    forgets(secure_server)


def test_a_network_that_refuses_for_a_while_is_waited_for(
    proxy: FaultProxy, secure_server: ToyServer, join: Callable[..., TeacherTalk], expected: Weights
) -> None:
    def refuse() -> None:
        proxy.strike(Fault.REFUSE)
        proxy.strike(Fault.CUT)
        threading.Timer(0.5, proxy.heal).start()

    talk = join(proxy.address)
    assert_same(train(talk, between=refuse), expected)
    assert talk.conversation.num_reconnects > 0


@pytest.mark.parametrize("point", ["before a message", "between reply and backward"])
def test_a_network_that_is_dark_for_a_while_is_waited_for(
    point: str, proxy: FaultProxy, join: Callable[..., TeacherTalk], expected: Weights
) -> None:
    def darken() -> None:
        proxy.strike(Fault.BLACKOUT)
        threading.Timer(2.5, proxy.heal).start()

    talk = join(proxy.address)
    got = train(talk, before=darken) if point == "before a message" else train(talk, between=darken)
    assert_same(got, expected)


@pytest.mark.parametrize("fault", [Fault.BLACKOUT, Fault.REFUSE])
def test_a_network_that_stays_away_ends_the_wait_in_time_and_the_error_says_for_what(
    fault: Fault, proxy: FaultProxy, join: Callable[..., TeacherTalk]
) -> None:
    talk = join(proxy.address, HASTY.model_copy(update={"deadline_s": 3.0}))
    heard = talk(states_of(0))
    proxy.strike(fault)
    if fault is Fault.REFUSE:
        proxy.strike(Fault.RESET)
    start_s = time.monotonic()
    with pytest.raises(
        TeacherUnavailableError, match=r"no replica opened a conversation in time; .*(answer|refused)"
    ):
        torch.autograd.backward(heard.decoded.sum())
    assert time.monotonic() - start_s < 3.0 + PATIENCE_S / 2
    start_s = time.monotonic()
    talk.close()
    assert time.monotonic() - start_s < PATIENCE_S / 2


def test_a_connection_that_stalls_is_given_up_before_its_answer_is_overdue(
    proxy: FaultProxy, secure_server: ToyServer, join: Callable[..., TeacherTalk], expected: Weights
) -> None:
    talk = join(proxy.address, HASTY.model_copy(update={"answer_timeout_s": 600.0, "keepalive_s": 1.0}))
    assert_same(train(talk, between=partial(proxy.strike, Fault.STALL)), expected)
    assert talk.conversation.num_reconnects > 0
    talk.close()
    forgets(secure_server)


def test_a_turn_has_its_deadline_also_where_an_answer_would_have_longer(
    secure_server: ToyServer, join: Callable[..., TeacherTalk]
) -> None:
    patient = HASTY.model_copy(update={"answer_timeout_s": 600.0, "deadline_s": 3.0})
    talk = join(secure_server.address, patient)
    heard = talk(states_of(0))
    secure_server.queue.gate.clear()
    try:
        with pytest.raises(DeadlineExceededError, match=r"gradients of turn 1: no answer within 3 s"):
            torch.autograd.backward(heard.decoded.sum())
    finally:
        secure_server.queue.gate.set()
    again = talk(states_of(0))
    assert torch.equal(again.decoded, heard.decoded)


def test_a_server_that_wants_no_pings_costs_a_reconnect_and_no_more(
    start_server: Callable[..., ToyServer],
    connect: Callable[..., TeacherTalk],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strict = ("grpc.http2.min_ping_interval_without_data_ms", 300_000)  # gRPC's own; ours bears a second
    monkeypatch.setattr("tests.toy_server.CONNECTION_OPTIONS", (strict,))
    server = start_server()
    talk = connect(server.address, options=HASTY.model_copy(update={"keepalive_s": 0.1}), deterministic=True)
    before = talk(states_of(0)).decoded
    stream = talk.conversation._conversation._stream  # type: ignore[union-attr]
    server.wait_until(lambda: stream is not None and not stream.usable)
    assert "Too many pings" in str(stream.lost)  # type: ignore[union-attr]
    assert torch.equal(talk(states_of(0)).decoded, before)
