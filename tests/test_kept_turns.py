"""What a conversation keeps for gradients that may come, and that nothing of it outlives its use."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from preceptor.terms import ObservationKind, Reading
from preceptor.v1 import teacher_pb2 as pb
from services.teacher.engine import Engine
from services.teacher.errors import Status
from services.teacher.fifo import FifoQueue
from services.teacher.graphs import GraphStore
from services.teacher.kept import Account, KeptBytes
from services.teacher.teaching import Teaching
from services.teacher.turns import KeptTurn, TurnShelf
from tests.toy import WatchedTeacher
from tests.toy_frames import (
    Desk,
    OtherDesk,
    backward,
    codec_state,
    exchange,
    ids,
    message,
    observe,
    opening,
    set_codec,
)
from tests.toy_server import GatedQueue

if TYPE_CHECKING:
    from services.teacher.config import ServiceConfig
    from services.teacher.families.base import Teacher
    from services.teacher.work import Turn


def _open(engine: Engine, **limits: int) -> Desk:
    desk = Desk(engine, **limits)
    desk.say(opening(), set_codec())
    return desk


def _turn(engine: Engine, number: int) -> Turn:
    """A turn as the service builds it, taken from a conversation."""
    with _open(engine) as desk:
        desk.say(exchange(number, message(seed=number)))
        kept = desk.conversation._turns.find(number)
    assert kept is not None
    return kept.turn


def test_a_shelf_drops_the_oldest_beyond_a_count_or_bytes(engine: Engine) -> None:
    turn = _turn(engine, 1)
    assert turn.codec is not None
    codec_bytes = sum(parameter.numel() * 4 for parameter in turn.codec.parameters())
    room = codec_bytes + 2 * turn.held_bytes  # the codec that all of them hold counts once
    for max_turns, max_bytes in ((2, 10**6), (10, room)):
        dropped: list[Turn] = []
        shelf = TurnShelf(max_turns, max_bytes, dropped.append)
        for number in (1, 2, 1, 3):  # a repetition makes a turn the newest
            shelf.put(number, KeptTurn(turn, b"", 10))
        assert [shelf.find(number) is not None for number in (1, 2, 3)] == [True, False, True]
        assert len(dropped) == 1
        assert shelf.num_bytes == room
        shelf.clear()
        assert len(dropped) == 3
        assert shelf.num_bytes == 0
        assert shelf.find(3) is None


def test_a_shelf_keeps_at_least_the_newest_turn(engine: Engine) -> None:
    shelf = TurnShelf(10, 5, lambda _: None)
    for number in (1, 2):
        shelf.put(number, KeptTurn(_turn(engine, 1), b"", 100))
    assert shelf.find(1) is None
    assert shelf.find(2) is not None


def test_past_the_replicas_limit_those_above_their_part_keep_less_and_others_all(engine: Engine) -> None:
    turn = _turn(engine, 1)
    kept = KeptBytes(max_bytes=10**6)
    greedy, modest = (TurnShelf(10, 10**6, lambda _: None, Account(kept, lambda n=n: n)) for n in "ab")  # type: ignore[misc]
    for number in range(1, 6):
        greedy.put(number, KeptTurn(turn, b"", 10))
    modest.put(1, KeptTurn(turn, b"", 10))
    assert kept.num_bytes == greedy.num_bytes + modest.num_bytes
    kept.max_bytes = kept.num_bytes - 1
    modest.put(2, KeptTurn(turn, b"", 10))
    assert modest.find(1) is not None  # it has less than half
    assert greedy.find(1) is not None  # it is asked for nothing as long as it takes nothing
    greedy.put(6, KeptTurn(turn, b"", 10))
    assert [greedy.find(number) is not None for number in (1, 6)] == [False, True]
    assert kept.num_bytes <= kept.max_bytes
    greedy.clear()
    modest.clear()
    assert kept.num_bytes == 0


def test_codecs_count_among_what_a_replica_keeps_until_their_conversation_is_over(engine: Engine) -> None:
    kept = KeptBytes(max_bytes=10**9)

    class CountedDesk(Desk):
        pass

    CountedDesk.kept = kept
    state = codec_state()
    codec_bytes = sum(tensor.nbytes for tensor in state.values())
    with CountedDesk(engine) as desk:
        desk.ask(opening())
        first, *_ = names = list(state)
        desk.say(set_codec(1, {first: state[first]}, complete=False))
        assert 0 < kept.num_bytes < codec_bytes * 2
        desk.say(set_codec(1, {name: state[name] for name in names[1:]}))
        assert kept.num_bytes == codec_bytes
        for version in (2, 3):
            desk.say(set_codec(version, codec_state(seed=version)))
        assert kept.num_bytes == 2 * codec_bytes  # as many versions as are held
        kept.max_bytes = 1
        failed = desk.ask(set_codec(4, codec_state(seed=4))).failed
        assert (failed.reason, failed.codec_version) == (pb.REASON_OVERLOADED, 4)
        assert failed.retry_after_ms > 0
        desk.conversation.give_up()
    assert kept.num_bytes == 0


def test_gradients_of_a_dropped_turn_are_refused_until_it_is_sent_again(engine: Engine) -> None:
    with _open(engine, max_retained_turns=1) as desk:
        first = desk.ask(exchange(1)).reply.reply
        desk.ask(exchange(2))
        assert len(engine.graphs) == 1
        assert desk.ask(backward(1)).failed.reason == pb.REASON_TURN_UNKNOWN
        assert desk.ask(exchange(1)).reply.reply == first
        assert desk.ask(backward(1)).gradients.receipt.graph_source == pb.GRAPH_SOURCE_RETAINED


def test_turns_dropped_before_they_were_computed_leave_no_graph(engine: Engine) -> None:
    with _open(engine, max_retained_turns=2) as desk:
        answers = desk.say(*(exchange(turn, message(seed=turn)) for turn in range(1, 6)))
        assert [answer.reply.turn for answer in answers] == [1, 2, 3, 4, 5]
        kept = {number: desk.conversation._turns.find(number) for number in range(1, 6)}
        assert [number for number, turn in kept.items() if turn is not None] == [4, 5]
        assert all(turn is None or engine.graphs.find(turn.turn) for turn in kept.values())
        assert len(engine.graphs._passes) == 2
        desk.conversation.give_up()
    assert (len(engine.graphs), engine.graphs.num_bytes) == (0, 0)


def test_gradients_keep_the_codec_of_their_turn(engine: Engine) -> None:
    def gradients(*later: pb.ConverseRequest) -> pb.Gradients:
        with _open(engine) as desk:
            desk.say(exchange(1))
            desk.say(*later)
            return desk.ask(backward(1)).gradients

    expected = gradients()
    got = gradients(*(set_codec(version, codec_state(seed=version)) for version in (2, 3, 4)))
    assert list(got.codec) == list(expected.codec)
    assert got.message == expected.message


def test_a_turn_that_wants_no_gradient_keeps_no_graph(engine: Engine) -> None:
    with _open(engine) as desk:
        assert desk.ask(exchange(1, wants_gradient=False)).HasField("reply")
        assert len(engine.graphs) == 0


def test_giving_up_drops_every_graph(engine: Engine) -> None:
    with _open(engine) as desk:
        desk.say(exchange(1), observe(2))
        assert len(engine.graphs) == 2
        desk.conversation.give_up()
        assert len(engine.graphs) == 0
        assert engine.graphs.num_bytes == 0


def test_giving_up_cancels_what_waits(tiny_teacher: Teacher, service_config: ServiceConfig) -> None:
    graphs = GraphStore(1 << 30)
    queue = GatedQueue(tiny_teacher, graphs, service_config)
    engine = Engine(Teaching(tiny_teacher, None), queue=queue, graphs=graphs)
    engine.start()
    with _open(engine) as desk:
        queue.gate.clear()
        assert desk.say(exchange(1), observe(2), then=desk.conversation.give_up) == []
    engine.stop()
    assert len(engine.graphs) == 0


def test_a_turn_in_computation_while_its_student_goes_leaves_no_graph(tiny_teacher: Teacher) -> None:
    entered, released = threading.Event(), threading.Event()

    def watch(name: str) -> None:
        if name == "upper":
            entered.set()
            assert released.wait(30)

    teacher = WatchedTeacher(tiny_teacher)
    graphs = GraphStore(1 << 30)
    engine = Engine(Teaching(teacher, None), queue=FifoQueue(4), graphs=graphs)
    engine.start()
    with _open(engine) as desk:
        teacher.watch = watch

        def leave() -> None:
            assert entered.wait(30)
            desk.conversation.give_up()
            released.set()

        assert desk.say(exchange(1), exchange(2), then=leave) == []
        assert len(engine.graphs) == 0
    engine.stop()


def _read_rows(answers: list[pb.ConverseResponse]) -> list[int]:
    receipts = [getattr(answer, answer.WhichOneof("frame") or "").receipt for answer in answers]
    return [receipt.num_cached_rows for receipt in receipts]


@pytest.mark.parametrize("reading", [Reading.BESIDE, Reading.ADD])
def test_an_input_that_was_read_ahead_costs_nothing_later(engine: Engine, reading: Reading) -> None:
    inputs = {"ids": ids()}
    with Desk(engine) as desk:
        desk.say(opening(reading=reading), set_codec())
        ahead = desk.ask(observe(1, (ObservationKind.LOGITS,), inputs=inputs, ahead=True)).observation
        assert (len(ahead.values), ahead.receipt.num_cached_rows) == (0, 0)
        later = (exchange(2, inputs=inputs), observe(3, (ObservationKind.LOGITS,), inputs=inputs))
        assert _read_rows([desk.ask(frame) for frame in later]) == [2, 2]
        assert desk.ask(backward(1)).failed.reason == pb.REASON_TURN_UNKNOWN  # nothing can follow it
        assert engine.graphs.num_bytes > 0
    with OtherDesk(engine) as other:  # of another tenant
        other.say(opening(reading=reading), set_codec())
        assert _read_rows([other.ask(exchange(1, inputs=inputs))]) == [0]


def test_conversations_of_one_tenant_share_what_was_read(engine: Engine) -> None:
    found = []
    for make in (Desk, OtherDesk):
        with make(engine) as desk:
            desk.say(opening(reading=Reading.ADD, tenant="team"), set_codec())
            found += _read_rows([desk.ask(exchange(1, inputs={"ids": ids()}))])
    assert found == [0, 2]


def test_a_message_that_replaces_reads_no_lower_states_ahead(engine: Engine) -> None:
    with Desk(engine) as desk:
        desk.say(opening(), set_codec())
        desk.ask(observe(1, (ObservationKind.LOGITS,), ahead=True))
        found = [desk.ask(observe(2 + n, (kind,))) for n, kind in enumerate(ObservationKind)]
    cached = dict(zip(ObservationKind, _read_rows(found), strict=True))
    assert cached[ObservationKind.LOWER_MESSAGE] == 0
    assert cached[ObservationKind.LOGITS] == 2


def test_a_turn_that_found_no_room_is_not_kept(tiny_teacher: Teacher) -> None:
    engine = Engine(Teaching(tiny_teacher, None), queue=FifoQueue(0), graphs=GraphStore(0))
    with Desk(engine) as desk:
        desk.say(opening(), set_codec())
        failed = desk.ask(exchange(4)).failed
        assert (failed.turn, failed.reason, failed.retry_after_ms) == (4, pb.REASON_OVERLOADED, 100)
        assert failed.status_code == Status.RESOURCE_EXHAUSTED
        assert desk.ask(backward(4)).failed.reason == pb.REASON_TURN_UNKNOWN
