"""One conversation: its agreement, its codec versions, its turns.

Takes the student's frames in order, answers each of them, and never raises on what a student sent. Runs on
an event loop; the teacher's computation happens elsewhere, behind the engine. Knows the protocol, neither
gRPC nor Ray.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, TypeVar

from preceptor.compression import Compression
from preceptor.v1 import teacher_pb2 as pb
from services.teacher import answers, checks
from services.teacher.agreement import agree, build_codec, check_limit
from services.teacher.codecs import CodecShelf
from services.teacher.credit import CreditLine
from services.teacher.errors import (
    FieldError,
    OverloadedError,
    ProtocolError,
    TurnConflictError,
    UnknownTurnError,
    failed_frame,
)
from services.teacher.handover import Handover
from services.teacher.kept import Account
from services.teacher.quota import paid
from services.teacher.turns import KeptTurn, TurnShelf

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from services.teacher.agreement import Agreement
    from services.teacher.config import LimitsConfig
    from services.teacher.engine import Engine
    from services.teacher.kept import KeptBytes
    from services.teacher.signals import ConversationSignals
    from services.teacher.work import ForwardResult, GradientsResult, Turn

__all__ = ["Conversation"]

ResultT = TypeVar("ResultT")


class Conversation:
    """The teacher's end of one stream.

    Args:
        conversation_id: its name in logs.
        engine: computes turns.
        limits: what is accepted.
        default_split_layer: the talking layer of students who name none.
        send: takes the answers, on the event loop.
        tenant: whose it is, where that is known; None: whose it says it is.
        charge: called with the tokens of each turn before it is computed (again); may refuse it. Called with
            them negated if it is refused after that.
        kept: what all conversations keep together; None: this one alone.
        signals: count what it does; None: new ones of the engine's.

    Attributes:
        closed: whether the student sent Close, or was cut off.
        signals: see above.
    """

    def __init__(
        self,
        conversation_id: str,
        *,
        engine: Engine,
        limits: LimitsConfig,
        default_split_layer: int,
        send: Callable[[pb.ConverseResponse], None],
        tenant: str | None = None,
        charge: Callable[[int], None] = lambda _: None,
        kept: KeptBytes | None = None,
        signals: ConversationSignals | None = None,
    ) -> None:
        self.conversation_id = conversation_id
        self.signals = signals or engine.signals.conversation(conversation_id)
        self._spans = self.signals.spans
        self._known_tenant = tenant
        self._charge = charge
        self._engine = engine
        self._limits = limits
        self._default_split_layer = default_split_layer
        self._write = send
        self._agreement: Agreement | None = None
        self._compression = Compression()
        self._credit = CreditLine(limits.credit_bytes)
        account = Account(kept, lambda: self.tenant)
        self._codecs = CodecShelf(8 * limits.max_codec_parameters, account)
        self._turns = TurnShelf(limits.max_retained_turns, limits.max_kept_bytes, engine.forget, account)
        self._pending: set[Future[ForwardResult] | Future[GradientsResult]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.closed = False
        self._gone = False

    @property
    def tenant(self) -> str:
        """Whose it is; empty as long as nobody has said so."""
        return self._known_tenant or ("" if self._agreement is None else self._agreement.speaker.tenant)

    @property
    def is_open(self) -> bool:
        """Whether the student's Open was accepted."""
        return self._agreement is not None

    @property
    def is_busy(self) -> bool:
        """Whether turns wait for their answers."""
        return not self._idle.is_set()

    def receive(self, frame: pb.ConverseRequest) -> None:
        """Takes one frame; every answer, also to frames that can't be served, goes through `send`."""
        if self._spans is not None:
            self._spans.asked(frame)
        kind = frame.WhichOneof("frame")
        content = getattr(frame, kind) if kind else None
        version = content.version if isinstance(content, pb.SetCodec) else 0
        num_bytes = frame.ByteSize()
        self.signals.received(num_bytes)
        cost = 0 if isinstance(content, pb.Open | pb.Close) else num_bytes
        if not self._credit.spend(cost):
            self.closed = True
            broken = ProtocolError(f"credit: got a frame of {cost} bytes, expected one that it covers")
            self._fail(broken, turn=0)
            return
        try:
            check_limit("frame bytes", num_bytes, self._limits.max_frame_bytes)
            is_awaited = self._receive(content, cost)
        except Exception as error:  # noqa: BLE001 - whatever one frame does, the conversation goes on
            self._fail(error, turn=getattr(content, "turn", 0), codec_version=version)
            is_awaited = False
        if not is_awaited:
            self._give_back(cost)

    def _give_back(self, cost: int) -> None:
        granted = self._credit.give_back(cost)
        if granted:
            self._send(pb.ConverseResponse(credit=pb.Credit(bytes=granted)))

    async def settle(self) -> None:
        """Waits until every turn is answered."""
        await self._idle.wait()

    def give_up(self) -> None:
        """Drops all that is kept for the student and whatever still waits to be computed."""
        self._gone = True
        for future in list(self._pending):
            future.cancel()
        self._turns.clear()
        self._codecs.clear()
        self._engine.gone(self.conversation_id)

    def _receive(self, content: object, cost: int) -> bool:
        """Takes a frame's content; returns whether its answer comes later."""
        match content:
            case pb.Open():
                self._open(content)
            case pb.SetCodec():
                self._set_codec(content)
            case pb.Exchange() | pb.Observe():
                self._forward(content, cost)
                return True
            case pb.Backward():
                self._backward(content, cost)
                return True
            case pb.Close():
                self.closed = True
            case _:
                raise ProtocolError("frame: got none that is known, expected one of ConverseRequest's")
        return False

    def _agreed(self) -> Agreement:
        if self._agreement is None:
            raise ProtocolError("frame: got one before the conversation was opened, expected open")
        if self.closed:
            raise ProtocolError("frame: got one after close, expected none")
        return self._agreement

    def _open(self, frame: pb.Open) -> None:
        if self._agreement is not None:
            raise ProtocolError("open: got a second one, expected one a conversation")
        teacher, default = self._engine.teacher, self._default_split_layer
        self._agreement = agree(
            frame, self.conversation_id, teacher, self._limits, default, self._known_tenant
        )
        if self._known_tenant is None:
            self.signals.named(frame.tenant)
        self._compression = self._agreement.compression
        self._send(answers.opened(self._agreement, teacher.facts, self._limits, default))

    def _set_codec(self, frame: pb.SetCodec) -> None:
        agreement = self._agreed()
        parts = self._codecs.add_part(frame)
        if parts is not None:
            codec = build_codec(parts, agreement, self._engine.teacher)
            self._codecs.put(frame.version, codec, parts)

    def _forward(self, frame: pb.Exchange | pb.Observe, cost: int) -> None:
        agreement = self._agreed()
        if frame.turn == 0:
            raise FieldError("turn: got 0, expected a positive number")
        digest = hashlib.sha256(frame.SerializeToString(deterministic=True)).digest()
        kept = self._turns.find(frame.turn)
        if kept is None:
            turn = checks.check_turn(frame, self._codecs.get, agreement, self._engine.teacher, self._limits)
            kept = KeptTurn(turn, digest, frame.ByteSize())
        elif kept.digest != digest:
            raise TurnConflictError(f"turn: got {frame.turn} again with other content, expected a new number")
        self._check_room()
        number, answered = frame.turn, kept
        with paid(kept.turn.num_tokens, self._charge, self.signals.tally):
            future = self._engine.forward(kept.turn)
        self.signals.tally.turns += 1
        if not (isinstance(frame, pb.Observe) and frame.ahead):  # nothing can follow it
            self._turns.put(number, kept)
        self._await(number, future, lambda result: self._answer_forward(number, answered, result), cost)

    def _backward(self, frame: pb.Backward, cost: int) -> None:
        self._agreed()
        kept = self._turns.find(frame.turn)
        if kept is None or kept.shapes is None:
            raise UnknownTurnError(
                f"turn: got {frame.turn}, which is not kept; send it again, then its gradients"
            )
        gradients = checks.check_backward(frame, kept.turn, kept.shapes)
        self._check_room()
        number, turn = frame.turn, kept.turn
        # The first gradients are in the turn's price; others are computed anew.
        num_tokens = turn.num_tokens if kept.had_gradients else 0
        with paid(num_tokens, self._charge, self.signals.tally):
            future = self._engine.backward(turn, gradients)
        kept.had_gradients = True
        self._await(number, future, lambda result: self._answer_backward(number, turn, result, cost), cost)

    def _check_room(self) -> None:
        limit = self._limits.max_turns_in_flight
        if len(self._pending) >= limit:
            raise OverloadedError(f"turns in flight: got one more, expected at most {limit}", 0.05)

    def _await(
        self, number: int, future: Future[ResultT], answer: Callable[[ResultT], None], cost: int
    ) -> None:
        """Has a turn answered on the event loop once it is computed."""
        handover = Handover.to(asyncio.get_running_loop())
        self._pending.add(future)  # type: ignore[arg-type]
        self._idle.clear()

        def finish() -> None:
            try:
                if not future.cancelled():
                    answer(future.result())
            except Exception as error:  # noqa: BLE001 - whatever one turn does, the conversation goes on
                self._fail(error, turn=number)
            self._give_back(cost)
            self._pending.discard(future)
            if not self._pending:
                self._idle.set()

        future.add_done_callback(lambda _: handover.call(finish))

    def _answer_forward(self, number: int, kept: KeptTurn, result: ForwardResult) -> None:
        if self._turns.find(number) is not kept:  # dropped before it was computed: no gradients can come
            self._engine.forget(kept.turn)
        if self._gone:
            self.signals.abandoned(kept.turn.num_tokens, result.cost.share_ms)
            return
        kept.shapes = {name: value.shape for name, value in result.values.items()}
        compression, limit = self._compression, self._limits.max_frame_bytes
        answer, num_bytes = answers.forward(number, kept, result, compression, limit)
        kind = "exchange" if answer.HasField("reply") else "observe"
        self.signals.answered(kind, kept.turn.num_tokens, result.cost.queue_ms, result.cost.share_ms)
        self._send(answer, num_bytes)

    def _answer_backward(self, number: int, turn: Turn, result: GradientsResult, num_bytes: int) -> None:
        compression, limit = self._compression, self._limits.max_frame_bytes
        for answer, size in answers.gradients(number, turn, result, num_bytes, compression, limit):
            if answer.gradients.complete:
                self.signals.answered("backward", turn.num_tokens, result.cost.queue_ms, result.cost.share_ms)
            self._send(answer, size)

    def _fail(self, error: Exception, *, turn: int, codec_version: int = 0) -> None:
        failed = failed_frame(error, self.conversation_id, turn=turn, codec_version=codec_version)
        self.signals.refused(failed)
        self._send(pb.ConverseResponse(failed=failed))

    def _send(self, answer: pb.ConverseResponse, num_bytes: int | None = None) -> None:
        """Sends a frame, of so many bytes where that is known: to find out takes as long as to write it."""
        self.signals.sent(answer.ByteSize() if num_bytes is None else num_bytes)
        self._write(answer)
        if self._spans is not None:
            self._spans.answered(answer)
