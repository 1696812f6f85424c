"""How a service is, as whoever asks may see it: an operator all, a tenant its own part."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from preceptor.v1 import status_pb2 as pb
from preceptor.v1 import teacher_pb2 as teacher
from preceptor.v1.status_pb2_grpc import StatusServiceStub
from student_client import background
from student_client.channel import open_channel, with_hint
from student_client.credentials import denied, metadata_of
from student_client.errors import TeacherError, TeacherUnavailableError, UnsupportedByTeacherError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from student_client.client import TeacherClient

__all__ = ["Share", "advice_on", "get_status", "plain", "shares"]

WINDOW_S = 60

_GRACE_S = 30.0
_DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

_MISTAKE = "a mistake in what was sent; the message names the field"
_DEFECT = "a defect of the client, or bytes changed on the way: update it, use TLS, tell the maintainers"
_BY_ITSELF = "nothing: the client sends it again by itself"
_ADVICE: dict[int, str] = {
    teacher.REASON_PROTOCOL_VIOLATION: _DEFECT,
    teacher.REASON_FIELD_INVALID: _MISTAKE,
    teacher.REASON_TENSOR_INVALID: _DEFECT,
    teacher.REASON_SHAPE_MISMATCH: _MISTAKE,
    teacher.REASON_DATA_TYPE_MISMATCH: _MISTAKE,
    teacher.REASON_NOT_FINITE: "the student sent NaN or infinity: a lower learning rate, clipped gradients",
    teacher.REASON_LIMIT_EXCEEDED: "send less at once; preceptor describe says the limits",
    teacher.REASON_TURN_CONFLICT: _DEFECT,
    teacher.REASON_CODEC_CONFLICT: _DEFECT,
    teacher.REASON_TURN_UNKNOWN: _BY_ITSELF,
    teacher.REASON_CODEC_UNKNOWN: _BY_ITSELF,
    teacher.REASON_UNSUPPORTED: "this teacher can't; preceptor describe says what it can",
    teacher.REASON_TEACHER_CHANGED: "another teacher answers now; start the run afresh",
    teacher.REASON_OVERLOADED: "the client comes again by itself; if it lasts: fewer conversations or "
    "smaller batches, a larger share or more replicas from the operator",
    teacher.REASON_INTERNAL: "a defect of the service; its log says more to its operator",
    teacher.REASON_DRAINING: "nothing: the client moves to another replica by itself",
    teacher.REASON_ACCESS_DENIED: "name a token that holds (--token-file); the operator gives them out",
}


@dataclass(frozen=True)
class Share:
    """What a tenant had of the computation of the last while.

    Attributes:
        had: its part of the time that replicas computed, 0 to 1.
        due: what its weight gives it beside those who computed too; None: their weights are not told.
    """

    had: float
    due: float | None


def get_status(client: TeacherClient, history_s: int = WINDOW_S) -> pb.GetStatusResponse:
    """Asks a service how it is; a replica tells of itself, the directory of all.

    Args:
        client: knows where it is.
        history_s: seconds of samples that are wanted.

    Raises:
        TeacherUnavailableError: nobody answered.
        UnsupportedByTeacherError: the service is too old to tell.
        AccessError: it does not tell.
        TeacherError: something else is served there.
    """
    options = client.options
    what = f"{client.address}: status"
    return background.run(_first_status(client, history_s), what, options.deadline_s + _GRACE_S)


async def _first_status(client: TeacherClient, history_s: int) -> pb.GetStatusResponse:
    problem = ""
    try:
        async with asyncio.timeout(client.options.deadline_s):
            for target in client.replicas:
                try:
                    return await _ask(client, target, history_s)
                except grpc.aio.AioRpcError as error:
                    problem = f"{target}: {error.code().name}: {error.details()}"
                    if error.code() in _DENIED:
                        raise denied(problem, client.options) from None
                    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                        raise UnsupportedByTeacherError(
                            f"{target}: no teacher is served there, or one that is too old to say how it is; "
                            "preceptor describe says what is there"
                        ) from None
                    if error.code() not in (
                        grpc.StatusCode.UNAVAILABLE,
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                    ):
                        raise TeacherError(problem) from None
    except TimeoutError:
        problem = f"nobody within {client.options.deadline_s:g} s"
    raise TeacherUnavailableError(
        f"no replica of {client.address} answered; the last one: {with_hint(problem, client.options)}"
    )


async def _ask(client: TeacherClient, target: str, history_s: int) -> pb.GetStatusResponse:
    channel = open_channel(target, client.options)
    try:
        response: pb.GetStatusResponse = await StatusServiceStub(channel).GetStatus(  # type: ignore[no-untyped-call]
            pb.GetStatusRequest(history_s=history_s),
            timeout=client.options.connect_timeout_s,
            metadata=metadata_of(client.options, target),
        )
    finally:
        await channel.close()
    return response


def shares(status: pb.GetStatusResponse) -> dict[str, Share]:
    """Returns what each tenant had of the computation of the last while; nothing where nothing was computed.

    Who sees only its own part learns how busy the replicas were, not who else they worked for.
    """
    samples = status.history
    had: dict[str, float] = {}
    for sample in samples:
        for tenant in sample.tenants:
            had[tenant.name] = had.get(tenant.name, 0.0) + tenant.compute_s
    total_s = sum(had.values())
    if not status.sees_all:
        seconds = [b.time_s - a.time_s for a, b in zip(samples, list(samples)[1:], strict=False)]
        busy_s = sum(
            each_s * sample.busy_share * sample.num_replicas
            for each_s, sample in zip(seconds, list(samples)[1:], strict=True)
        )
        total_s = max(total_s, busy_s)
    if not total_s:
        return {}
    weights = {tenant.name: tenant.weight or 1.0 for tenant in status.tenants if had.get(tenant.name)}
    whole = sum(weights.values())
    return {
        name: Share(had[name] / total_s, weight / whole if status.sees_all else None)
        for name, weight in weights.items()
    }


def advice_on(reason: int) -> str:
    """Returns what to do about a refusal."""
    return _ADVICE.get(reason, "the message says more")


def plain(message: Message) -> dict[str, Any]:
    """Returns a message as JSON has it; counts are numbers there, not texts, and nothing is left out."""
    content: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None:
            content[field.name] = [plain(each) for each in value]
        elif field.enum_type is not None:
            content[field.name] = field.enum_type.values_by_number[value].name
        else:
            content[field.name] = value
    return content
