"""The gRPC surface of a teacher; the only module that knows gRPC and the teacher together.

The same class serves under a bare `grpc.aio` server and inside a Ray Serve replica: both call the methods by
their RPC names with the request (or the stream of requests) and a context.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from typing import TYPE_CHECKING, Any

from preceptor.v1 import teacher_pb2 as pb
from services.teacher.access import admit, answer_status, deny, is_blind, is_denied, peer_of, refuse
from services.teacher.balance import num_to_move
from services.teacher.conversation import Conversation
from services.teacher.describe import describe_limits, describe_teacher
from services.teacher.directory import Directory, Report
from services.teacher.errors import (
    DrainingError,
    OverloadedError,
    ProtocolError,
    TurnError,
    failure_of,
)
from services.teacher.gate import AccessDeniedError, gate_of
from services.teacher.health import answer_check
from services.teacher.kept import KeptBytes
from services.teacher.outbox import Outbox
from services.teacher.own_status import OwnStatus
from services.teacher.quota import Quotas
from services.teacher.reading import FirstFrames, end_by
from services.teacher.visit import End, Visit, notice_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    from preceptor.v1.status_pb2 import GetStatusRequest, GetStatusResponse
    from services.teacher.config import ServiceConfig
    from services.teacher.engine import Engine
    from services.teacher.gate import Gate, Pass

__all__ = ["TeacherServicer"]

logger = logging.getLogger(__name__)

_WATCH_S = 1.0
_LINGER_S = 10.0
_BALANCE_S = 5.0


class TeacherServicer:
    """Serves one frozen teacher; see `TeacherService` of the protocol.

    Args:
        engine: computes turns; started and stopped by its owner.
        config: the operator's.
        gate: says who may talk, and gave the engine the tenants' shares; None: the config's, if it has one.
    """

    def __init__(self, engine: Engine, config: ServiceConfig, gate: Gate | None = None) -> None:
        self._engine = engine
        self._limits = config.limits
        num_layers = engine.teacher.facts.num_layers
        self._default_split_layer = num_layers // 2 if config.split_layer is None else config.split_layer
        if self._default_split_layer > num_layers:
            raise ValueError(f"split_layer: got {config.split_layer}, expected 0 to {num_layers}")
        self._directory = Directory.copy()
        self._gate = gate_of(config) if gate is None else gate
        self._status = OwnStatus(engine, config, self._gate)
        self._quotas = Quotas()
        self._first_frames = FirstFrames()
        self._kept = KeptBytes(config.limits.max_replica_kept_bytes)
        self._visits: dict[Outbox, Visit] = {}
        self._address = ""
        self._balanced_s = 0.0
        self._readings: set[asyncio.Timeout] = set()
        self._closes_at_s: float | None = None  # on the loop's clock; set while draining

    async def DescribeTeacher(  # noqa: N802 - Ray Serve and gRPC look methods up by RPC name
        self,
        request: pb.DescribeTeacherRequest,  # noqa: ARG002
        grpc_context: Any = None,
    ) -> pb.DescribeTeacherResponse:
        """Says what the teacher is and what it accepts."""
        if await is_denied(self._gate, grpc_context, self._status):
            return pb.DescribeTeacherResponse()
        return pb.DescribeTeacherResponse(
            teacher=describe_teacher(self._engine.teacher.facts, self._default_split_layer),
            limits=describe_limits(self._limits),
        )

    async def FindReplicas(  # noqa: N802
        self,
        request: pb.FindReplicasRequest,
        grpc_context: Any = None,
    ) -> pb.FindReplicasResponse:
        """Says which replicas there are, as far as this one was told; none if it knows of none."""
        if await is_denied(self._gate, grpc_context, self._status):
            return pb.FindReplicasResponse()
        return pb.FindReplicasResponse(
            replicas=self._directory.find(opens_conversation=request.opens_conversation)
        )

    async def GetStatus(  # noqa: N802
        self, request: GetStatusRequest, grpc_context: Any = None
    ) -> GetStatusResponse:
        """Says how this replica is, as far as the caller may see it."""
        return await answer_status(request, self._gate, grpc_context, self._status)

    async def Check(self, request: HealthCheckRequest, grpc_context: Any = None) -> HealthCheckResponse:  # noqa: N802
        """Says whether conversations are taken; see `health`."""
        is_serving = self._closes_at_s is None and self._engine.is_alive and not await is_blind(self._gate)
        return answer_check(request, grpc_context, is_serving=is_serving)

    async def Converse(  # noqa: N802
        self,
        request_stream: AsyncIterator[pb.ConverseRequest],
        grpc_context: Any = None,
    ) -> AsyncIterator[pb.ConverseResponse]:
        """Holds one conversation; ends when the student has closed it and every turn is answered."""
        try:
            shown = None if self._gate is None else await admit(self._gate, grpc_context)
        except AccessDeniedError as error:
            deny(grpc_context, error, self._status)  # a stranger gets no answer, and nothing of it is read
            return
        try:
            self._check_room(shown)
        except TurnError as error:
            tenant = "" if shown is None else shown.tenant
            refuse(tenant, grpc_context, error, error.reason, self._status)
            await self._first_frames.read(request_stream)
            yield pb.ConverseResponse(failed=failure_of(error))
            return
        outbox = Outbox(self._limits.max_turns_in_flight)
        visit = self._visits[outbox] = self._visit(outbox, shown, peer_of(grpc_context))
        reading = asyncio.timeout_at(self._closes_at_s)
        reader = asyncio.create_task(self._read(request_stream, visit, reading))
        watch = asyncio.create_task(self._watch(visit, reading))
        try:
            async for answer in outbox.answers():
                yield answer
        finally:
            del self._visits[outbox]
            reader.cancel()
            watch.cancel()
            visit.close(asyncio.get_running_loop().time())
            self._engine.signals.ended(visit.conversation.signals, visit.end.value)
            await asyncio.wait([reader, watch])

    def _visit(self, outbox: Outbox, shown: Pass | None, peer: str) -> Visit:
        signals = self._engine.signals.conversation(uuid.uuid4().hex, peer)
        if shown is not None:
            signals.named(shown.tenant)
        conversation = Conversation(
            signals.conversation_id,
            engine=self._engine,
            limits=self._limits,
            default_split_layer=self._default_split_layer,
            send=outbox.put,
            tenant=None if shown is None else shown.tenant,
            charge=self._charge_of(shown),
            kept=self._kept,
            signals=signals,
        )
        now_s = asyncio.get_running_loop().time()
        return Visit(conversation, outbox, shown, peer, now_s, handler=asyncio.current_task())

    def _charge_of(self, shown: Pass | None) -> Callable[[int], None]:
        if shown is None or shown.tokens_per_s is None:
            return lambda _: None
        tenant, rate = shown.tenant, shown.tokens_per_s
        return lambda num_tokens: self._quotas.charge(tenant, num_tokens, rate)

    async def _read(
        self,
        request_stream: AsyncIterator[pb.ConverseRequest],
        visit: Visit,
        reading: asyncio.Timeout,
    ) -> None:
        """Feeds the conversation until it is done, gone or out of time, then lets its turns be answered."""
        conversation, outbox = visit.conversation, visit.outbox
        try:
            await self._feed(request_stream, visit, reading)
            await conversation.settle()
        except Exception as error:  # noqa: BLE001 - the stream broke, or its bytes are no frame
            # A line and no more: students can do this as often as they like.
            where = {"conversation": conversation.conversation_id}
            kind = type(error).__name__
            logger.warning("conversation %s: the stream broke: %s", *where.values(), kind, extra=where)
            failed = failure_of(ProtocolError("frame: got bytes that are none, expected a ConverseRequest"))
            visit.tell(pb.ConverseResponse(failed=failed))
        finally:
            outbox.put(None)

    async def _feed(
        self,
        request_stream: AsyncIterator[pb.ConverseRequest],
        visit: Visit,
        reading: asyncio.Timeout,
    ) -> None:
        """Reads frames until the student closes or ends the stream, or its time is over."""
        clock, conversation = asyncio.get_running_loop().time, visit.conversation
        try:
            async with reading:
                self._readings.add(reading)
                if self._closes_at_s is not None:
                    end_by(reading, self._closes_at_s)
                async for frame in request_stream:
                    visit.heard(clock())
                    conversation.receive(frame)
                    if conversation.closed:
                        break
                    await visit.outbox.room()
        except TimeoutError:
            if not reading.expired():
                raise
            if visit.end is End.STUDENT:
                visit.end = End.DRAINED
        finally:
            self._readings.discard(reading)

    async def _watch(self, visit: Visit, reading: asyncio.Timeout) -> None:
        """Ends a conversation that has to; one whose student reads nothing is cut off soon after."""
        loop = asyncio.get_running_loop()
        try:
            while not visit.must_end(self._gate, self._limits, loop.time()):
                self._status.look()
                await asyncio.sleep(_WATCH_S)
                if self._gate is not None:
                    await self._gate.look()
        except Exception:  # who can't be watched is not let go on
            where = {"conversation": visit.conversation.conversation_id}
            logger.exception("conversation %s can't be watched", *where.values(), extra=where)
            visit.end = End.DENIED
        visit.tell(notice_of(visit.end))
        end_by(reading, loop.time())
        if visit.handler is not None:
            visit.cut = loop.call_later(_LINGER_S, visit.handler.cancel)

    def _check_room(self, shown: Pass | None) -> None:
        """Raises why no new conversation is taken, if none is."""
        if self._closes_at_s is not None:
            raise DrainingError("this replica is going away; open a conversation elsewhere")
        limit = self._limits.max_conversations
        if len(self._visits) >= limit:
            raise OverloadedError(f"conversations: got one more, expected at most {limit}", 1.0)
        if shown is not None:
            own = shown.max_conversations or self._limits.max_conversations_per_tenant or math.ceil(limit / 2)
            num_own = sum(visit.conversation.tenant == shown.tenant for visit in self._visits.values())
            if num_own >= own:
                raise OverloadedError(
                    f"conversations of {shown.tenant}: got one more, expected at most {own}", 1.0
                )

    def report(self, address: str) -> Report:
        """Returns how this replica, whose students reach it at `address`, is now."""
        self._address = address
        return Report(
            address=address,
            num_conversations=len(self._visits),
            queued_tokens=self._engine.queued_tokens,
            max_conversations=self._limits.max_conversations,
            max_queued_tokens=self._limits.max_queued_tokens,
            draining=self._closes_at_s is not None,
            status=self._status.report(address),
        )

    def learn(self, reports: Iterable[Report]) -> None:
        """Takes what is known of all replicas, for students who ask here; may ask some of ours to move."""
        reports = list(reports)
        self._directory.learn(reports)
        now_s = asyncio.get_running_loop().time()
        if self._closes_at_s is None and now_s >= self._balanced_s + _BALANCE_S:
            staying = [visit for visit in self._visits.values() if not visit.is_moving]
            number = num_to_move(len(staying), len(self._visits), self._address, reports)
            moving = staying[len(staying) - number :]
            for visit in moving:
                visit.move()
            self._balanced_s = now_s if moving else self._balanced_s

    def drain(self, closes_in_s: float) -> None:
        """Takes no new conversations and asks the students of the open ones to move; on the event loop.

        Turns are taken and answered for `closes_in_s` seconds more; then the streams that are left end, once
        what they had asked for is answered.
        """
        if self._closes_at_s is not None:
            return
        self._closes_at_s = asyncio.get_running_loop().time() + closes_in_s
        for reading in self._readings:
            end_by(reading, self._closes_at_s)
        notice = pb.ConverseResponse(draining=pb.Draining(closes_in_ms=int(closes_in_s * 1000)))
        for outbox in self._visits:
            outbox.put(notice)
