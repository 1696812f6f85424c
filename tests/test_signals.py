"""What a replica counts: for conversations, for tenants, of refusals and of passes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from preceptor import wire
from preceptor.codec import CodecSpec
from preceptor.names import OTHERS, UNKNOWN, UNNAMED
from preceptor.v1 import status_pb2 as pb
from preceptor.v1 import teacher_pb2 as teacher
from services.teacher.config import CacheConfig
from services.teacher.loading import build_engine
from services.teacher.recent import Recent, RecentRefusals
from services.teacher.signals import MAX_TENANTS, Signals
from tests.toy_frames import (
    MESSAGE_DIM,
    MESSAGE_LEN,
    Desk,
    OtherDesk,
    backward,
    codec_state,
    exchange,
    ids,
    observe,
    opening,
    set_codec,
)

if TYPE_CHECKING:
    from services.teacher.config import ServiceConfig
    from services.teacher.engine import Engine
    from services.teacher.families.base import Teacher
    from services.teacher.signals import ConversationSignals

REASONS = [teacher.REASON_OVERLOADED, teacher.REASON_NOT_FINITE, teacher.REASON_INTERNAL]


def conversation(signals: Signals, name: str, tenant: str, num_turns: int = 0) -> ConversationSignals:
    opened = signals.conversation(name, f"ipv4:10.0.0.1:{len(name)}")
    opened.named(tenant)
    for _ in range(num_turns):
        opened.answered("exchange", 10, queue_ms=1.0, share_ms=2.0)
    return opened


def failed(reason: teacher.Reason = teacher.REASON_OVERLOADED, message: str = "come back") -> teacher.Failed:
    return teacher.Failed(reason=reason, message=message)


def refusal(tenant: str, peer: str = "ipv4:10.0.0.1:1", conversation: str = "") -> pb.Refusal:
    message = "m" * 5000
    return pb.Refusal(tenant=tenant, peer=peer, conversation=conversation, message=message, count=1)


def test_what_is_computed_for_a_student_that_left_is_its_tenants() -> None:
    signals = Signals()
    left = conversation(signals, "1", "a", num_turns=1)
    signals.ended(left, "gone")
    left.abandoned(num_tokens=5, share_ms=7.0)
    counts = signals.tenants()["a"].counts
    assert (counts.num_turns, counts.num_tokens) == (1, 15)
    assert counts.compute_s == pytest.approx(0.009)
    (closed,) = signals.conversations()
    assert closed.num_tokens == 10


def test_a_tenant_has_what_its_conversations_have_open_and_closed() -> None:
    signals = Signals()
    first = conversation(signals, "1", "a", num_turns=2)
    conversation(signals, "2", "a", num_turns=3)
    conversation(signals, "3", "b", num_turns=4)
    before = signals.tenants()["a"]
    signals.ended(first, "it left")
    signals.ended(first, "it left")  # once is enough
    after = signals.tenants()["a"]
    assert before.counts == after.counts
    assert (after.counts.turns, after.counts.num_tokens) == ({"exchange": 5}, 50)
    assert after.counts.queue_s == pytest.approx(0.005)
    assert after.counts.compute_s == pytest.approx(0.010)
    assert (before.num_conversations, after.num_conversations, signals.num_conversations) == (2, 1, 2)
    closed = [each for each in signals.conversations() if each.closed_s]
    assert [(each.id, each.why, each.num_turns) for each in closed] == [("1", "it left", 2)]


def test_what_is_read_is_a_copy() -> None:
    signals = Signals()
    talking = conversation(signals, "1", "a", num_turns=1)
    seen = signals.tenants()["a"].counts
    talking.answered("observe", 1, queue_ms=0, share_ms=0)
    talking.refused(failed())
    assert (seen.num_turns, seen.num_refusals) == (1, 0)
    told = signals.refusals()
    talking.refused(failed())
    assert [each.count for each in told] == [1]


def test_conversations_without_a_name_are_counted_as_one_tenant() -> None:
    signals = Signals()
    for number in range(3):
        conversation(signals, str(number), "", num_turns=1)
    signals.conversation("4", "somebody")  # it has not opened yet
    tenants = signals.tenants()
    assert {name: each.counts.num_turns for name, each in tenants.items()} == {UNNAMED: 3}


def test_tenants_past_a_thousand_share_a_name_and_nothing_is_lost() -> None:
    signals = Signals()
    for number in range(MAX_TENANTS + 500):
        each = conversation(signals, str(number), f"tenant-{number}", num_turns=1)
        if number % 2:
            signals.ended(each, "it left")
    tenants = signals.tenants()
    assert len(tenants) == MAX_TENANTS + 1
    assert tenants[OTHERS].counts.num_turns == 500
    assert sum(each.counts.num_turns for each in tenants.values()) == MAX_TENANTS + 500
    assert sum(each.num_conversations for each in tenants.values()) == signals.num_conversations
    assert sum(1 for each in signals.conversations() if each.closed_s) == 50


def test_delays_are_those_of_the_last_minute() -> None:
    now_s = [1000.0]
    signals = Signals(lambda: now_s[0])
    talking = conversation(signals, "1", "a")
    assert signals.tenants()["a"].quantiles_s(now_s[0], 0.5, 0.99) == [0, 0]
    talking.answered("exchange", 1, queue_ms=5000, share_ms=0)
    now_s[0] += 61
    for number in range(100):
        talking.answered("exchange", 1, queue_ms=number, share_ms=0)
    assert signals.tenants()["a"].quantiles_s(now_s[0], 0.5, 0.99) == [0.050, 0.099]
    for _ in range(10_000):
        talking.answered("exchange", 1, queue_ms=1, share_ms=0)
    assert len(signals.tenants()["a"].delays) == 256


def test_alike_refusals_of_a_conversation_are_counted_together() -> None:
    signals = Signals()
    talking, other = conversation(signals, "1", "a"), conversation(signals, "2", "a")
    for number in range(3):
        talking.refused(failed(message=f"got {number}"))
    talking.refused(failed(teacher.REASON_NOT_FINITE, "a NaN"))
    other.refused(failed())
    told = [(each.conversation, each.reason, each.message, each.count) for each in signals.refusals()]
    assert told == [
        ("2", teacher.REASON_OVERLOADED, "come back", 1),
        ("1", teacher.REASON_NOT_FINITE, "a NaN", 1),
        ("1", teacher.REASON_OVERLOADED, "got 2", 3),
    ]
    assert signals.tenants()["a"].counts.refusals == {14: 4, 6: 1}


def test_strangers_of_a_host_are_counted_together_whatever_their_ports() -> None:
    signals = Signals()
    for port in range(500):
        signals.refused("", f"ipv4:10.0.0.1:{port}", teacher.REASON_ACCESS_DENIED, "no token")
    signals.refused("", "ipv6:[::1]:7", teacher.REASON_ACCESS_DENIED, "no token")
    assert [(each.peer, each.count) for each in signals.refusals()] == [
        ("ipv6:[::1]:7", 1),
        ("ipv4:10.0.0.1:499", 500),
    ]
    assert signals.tenants()[UNKNOWN].counts.num_refusals == 501


def test_nobody_crowds_out_the_refusals_of_others() -> None:
    refusals = RecentRefusals()
    refusals.add(refusal("quiet"))
    for number in range(5000):
        refusals.add(refusal("loud", conversation=str(number)))
        refusals.add(refusal("", peer=f"ipv4:10.0.{number // 250}.{number % 250}:1"))
    told = refusals.newest_first()
    assert len(told) == 100
    assert told[-1].tenant == "quiet"
    assert max(len(each.message) for each in told) < 400


def test_the_oldest_of_who_has_most_goes_first() -> None:
    recent: Recent[int] = Recent(4)
    for number, owner in enumerate("abbbb"):
        recent.put(number, owner, number)
    assert recent.newest_first() == [4, 3, 2, 0]
    assert recent.get(0) == 0
    assert recent.newest_first() == [0, 4, 3, 2]
    assert recent.get(1) is None


def test_who_reads_while_others_count_sees_no_error_and_loses_nothing() -> None:
    signals = Signals()
    ended = threading.Event()
    errors: list[Exception] = []

    def read() -> None:
        try:
            while not ended.is_set():
                for each in signals.tenants().values():
                    each.quantiles_s(0, 0.5)
                signals.conversations()
                signals.refusals()
        except Exception as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(3000):
        each = conversation(signals, str(number), f"tenant-{number % 7}", num_turns=3)
        each.refused(failed(REASONS[number % len(REASONS)]))
        signals.ended(each, "it left")
    ended.set()
    reader.join()
    assert errors == []
    assert sum(each.counts.num_turns for each in signals.tenants().values()) == 9000
    assert sum(each.counts.num_refusals for each in signals.tenants().values()) == 3000


def receipts_of(answers: list[teacher.ConverseResponse]) -> list[teacher.Receipt]:
    frames = [getattr(answer, str(answer.WhichOneof("frame"))) for answer in answers]
    return [frame.receipt for frame in frames if hasattr(frame, "receipt")]


def test_counts_are_those_of_the_receipts(engine: Engine) -> None:
    with Desk(engine) as desk, OtherDesk(engine) as other:
        inputs = {"ids": ids()}
        frames = [
            [opening(tenant="a"), set_codec(), exchange(1), observe(2, inputs=inputs)],
            [backward(1), exchange(1), observe(3, inputs=inputs)],  # the rows of 3 are those of 2
            [backward(1), exchange(0), backward(9)],
        ]
        sent = [frame for part in frames for frame in part]
        answers = [answer for part in frames for answer in desk.say(*part)]
        other.say(opening(tenant="b"), set_codec(), exchange(1))
        receipts = receipts_of(answers)
        counts = engine.signals.tenants()["a"].counts
        passes = engine.signals.passes
    assert counts.turns == {"exchange": 2, "observe": 2, "backward": 2}
    assert counts.num_turns == len(receipts)
    assert counts.num_tokens == sum(receipt.tokens for receipt in receipts)
    assert counts.queue_s == pytest.approx(sum(receipt.queue_ms for receipt in receipts) / 1000)
    assert counts.compute_s == pytest.approx(sum(receipt.compute_ms for receipt in receipts) / 1000)
    assert counts.request_bytes == sum(frame.ByteSize() for frame in sent)
    assert counts.answer_bytes == sum(answer.ByteSize() for answer in answers)
    assert counts.refusals == {teacher.REASON_FIELD_INVALID: 1, teacher.REASON_TURN_UNKNOWN: 1}
    sources = [receipt.graph_source for receipt in receipts]
    assert passes.num_retained == sources.count(teacher.GRAPH_SOURCE_RETAINED)
    assert passes.num_recomputed == sources.count(teacher.GRAPH_SOURCE_RECOMPUTED)
    assert (passes.num_passes, passes.num_computed, passes.num_tenants_in_passes) == (7, 7, 7)
    assert passes.num_cached_rows == sum(receipt.num_cached_rows for receipt in receipts) == 2
    assert passes.num_read_rows == 2


@pytest.mark.parametrize("max_frame_bytes", [1 << 20, 4096])
def test_bytes_of_gradients_are_known_also_where_they_come_in_parts(
    engine: Engine, max_frame_bytes: int
) -> None:
    spec = CodecSpec(message_dim=MESSAGE_DIM, message_len=MESSAGE_LEN, kind="two_layer", hidden_dim=60)
    with Desk(engine, max_frame_bytes=max_frame_bytes) as desk:
        parts = wire.encode_named(codec_state(spec))
        codec = [set_codec(1, [part], complete=part is parts[-1]) for part in parts]
        answers = desk.say(opening(spec), *codec, exchange(1)) + desk.say(backward(1))
        counts = engine.signals.tenants()[UNNAMED].counts
    num_parts = sum(answer.HasField("gradients") for answer in answers)
    assert num_parts == (4 if max_frame_bytes == 4096 else 1)
    assert counts.answer_bytes == sum(answer.ByteSize() for answer in answers)
    assert counts.turns == {"exchange": 1, "backward": 1}


def test_nothing_counts_as_read_that_is_read_ahead_without_a_cache(
    tiny_teacher: Teacher, service_config: ServiceConfig
) -> None:
    config = service_config.model_copy(update={"cache": CacheConfig(max_bytes=0)})
    engine = build_engine(tiny_teacher, config)
    engine.start()
    with Desk(engine) as desk:
        desk.say(opening(), set_codec(), observe(1, ahead=True, wants_gradient=False), observe(2))
    engine.stop()
    assert (engine.signals.passes.num_cached_rows, engine.signals.passes.num_read_rows) == (0, 2)
