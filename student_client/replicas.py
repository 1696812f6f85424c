"""Finds the replicas of a teacher from the addresses a student was given.

Any replica knows the others, and so does the service's directory, which is none itself. Lives on the
background loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from student_client.channel import open_channel
from student_client.credentials import denied, metadata_of
from student_client.errors import TeacherError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from student_client.errors import AccessError
    from student_client.options import ClientOptions

__all__ = ["ReplicaFinder"]

_QUESTION_TIMEOUT_S = 1.0
_DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class ReplicaFinder:
    """Knows where a teacher's replicas were last seen.

    Args:
        seeds: `HOST:PORT` of replicas or directories, those to ask first.
        options: limits of the channels.

    """

    def __init__(self, seeds: Sequence[str], options: ClientOptions) -> None:
        self._seeds = tuple(seeds)
        self._options = options
        self._learned: tuple[str, ...] = ()
        self._was_answered = False

    async def find(self, *, opens_conversation: bool) -> list[str]:
        """Returns where to try, in this order.

        Asks the seeds, then the replicas learned before, until one answers: the replicas it names, then the
        seeds. If it names none, it is itself the first to try. Without an answer, those that refused to say
        come first.

        Args:
            opens_conversation: whether a conversation is about to be opened at the first of them.

        Raises:
            AccessError: nobody answered, and one said that this student is not let in.
        """
        refused: list[str] = []
        denial: AccessError | None = None
        for target in dict.fromkeys((*self._seeds, *self._learned)):
            try:
                replicas = await self._ask(target, opens_conversation=opens_conversation)
            except grpc.aio.AioRpcError as error:
                if error.code() in _DENIED:
                    denial = denied(f"{target}: {error.code().name}: {error.details()}", self._options)
                elif error.code() not in _UNREACHABLE:
                    refused.append(target)
                continue
            self._was_answered = True
            if replicas:
                self._learned = tuple(replicas)
            return self._with_seeds(replicas or [target])
        if denial is not None:
            raise denial
        return self._with_seeds(refused)

    def refusal(self, code: grpc.StatusCode | None, cause: str) -> TeacherError | None:
        """Returns the error to raise at once when a replica ends a call, or None if it may help to try on.

        Args:
            code: the gRPC status it ended with, if it did.
            cause: what happened, for the message.
        """
        if code in _DENIED:
            return denied(cause, self._options)
        # Where replicas could be asked for, it is a directory that knows of none for now.
        if code is grpc.StatusCode.UNIMPLEMENTED and not self._was_answered:
            return TeacherError(f"{cause}: no teacher is served there, or one of another version")
        return None

    async def _ask(self, target: str, *, opens_conversation: bool) -> list[str]:
        channel = open_channel(target, self._options)
        try:
            stub = TeacherServiceStub(channel)  # type: ignore[no-untyped-call]
            response: pb.FindReplicasResponse = await stub.FindReplicas(
                pb.FindReplicasRequest(opens_conversation=opens_conversation),
                timeout=min(_QUESTION_TIMEOUT_S, self._options.connect_timeout_s),
                metadata=metadata_of(self._options, target),
            )
        finally:
            await channel.close()
        return [replica.address for replica in response.replicas]

    def _with_seeds(self, targets: list[str]) -> list[str]:
        return list(dict.fromkeys((*targets, *self._seeds)))
