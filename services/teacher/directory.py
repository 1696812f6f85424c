"""Which replicas serve a teacher, and which of them has the most room.

    replica -- Report, twice a second --> Directory -- everybody's last report --> replica
    student -- FindReplicas --> the service's Directory, or any replica's copy of it

Knows neither Ray nor gRPC; others carry the reports.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from preceptor.v1 import teacher_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ["REPORT_PERIOD_S", "Directory", "Report", "Reporter"]

logger = logging.getLogger(__name__)

REPORT_PERIOD_S = 0.5
_MAX_AGE_S = 2.0
_SEND_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Report:
    """What a replica says of itself.

    Attributes:
        address: HOST:PORT of its server.
        num_conversations: conversations that are open.
        queued_tokens: positions that wait to be computed.
        max_conversations: conversations it takes.
        max_queued_tokens: positions it lets wait.
        draining: whether it is going away.
        status: all that it tells of itself, a `GetStatusResponse`; empty: as before.
    """

    address: str
    num_conversations: int
    queued_tokens: int
    max_conversations: int
    max_queued_tokens: int
    draining: bool = False
    status: bytes = field(default=b"", compare=False, repr=False)

    def fullness(self, num_more: int) -> float:
        """Returns how full the replica is with some more conversations: 0 if idle, 1 at one of its limits."""
        conversations = (self.num_conversations + num_more) / max(self.max_conversations, 1)
        return conversations + self.queued_tokens / max(self.max_queued_tokens, 1)


@dataclass
class _Entry:
    report: Report
    heard_s: float
    num_assumed: int = 0


class Directory:
    """What the replicas last said of themselves.

    Args:
        max_age_s: seconds after which a replica that says nothing is gone.
        clock: seconds that only go forward.
    """

    def __init__(self, max_age_s: float = _MAX_AGE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_age_s = max_age_s
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    @classmethod
    def copy(cls) -> Directory:
        """Returns one that keeps what it was last told by `learn`, for a replica."""
        return cls(max_age_s=math.inf)

    def report(self, report: Report) -> list[Report]:
        """Takes a replica's word and returns what is known of all that take conversations, it included."""
        if report.draining:
            self._entries.pop(report.address, None)
        else:
            self._entries[report.address] = _Entry(report, self._clock())
        return [entry.report for entry in self._live()]

    def learn(self, reports: Iterable[Report]) -> None:
        """Replaces all that is known by what `report` of another directory returned."""
        now_s = self._clock()
        self._entries = {report.address: _Entry(report, now_s) for report in reports}

    def find(self, *, opens_conversation: bool) -> list[pb.Replica]:
        """Returns the replicas that take conversations, those with the most room first.

        Args:
            opens_conversation: whether the first is about to get one. It then counts as having it until its
                next report, so those who come at the same time are spread.
        """
        entries = sorted(self._live(), key=lambda entry: entry.report.fullness(entry.num_assumed))
        if opens_conversation and entries:
            entries[0].num_assumed += 1
        return [
            pb.Replica(
                address=entry.report.address,
                num_conversations=entry.report.num_conversations,
                queued_tokens=entry.report.queued_tokens,
            )
            for entry in entries
        ]

    def _live(self) -> list[_Entry]:
        oldest_s = self._clock() - self._max_age_s
        self._entries = {
            address: entry for address, entry in self._entries.items() if entry.heard_s >= oldest_s
        }
        return list(self._entries.values())


class Reporter:
    """Reports for one replica until stopped; what goes wrong on the way is logged and tried again.

    Args:
        make: says how the replica is now.
        send: takes it to the service's directory and returns what that knows.
        learn: takes what came back.
        period_s: seconds between reports.
    """

    def __init__(
        self,
        make: Callable[[], Report],
        send: Callable[[Report], Awaitable[list[Report]]],
        learn: Callable[[list[Report]], None],
        period_s: float = REPORT_PERIOD_S,
    ) -> None:
        self._make = make
        self._send = send
        self._learn = learn
        self._period_s = period_s
        self._changed = asyncio.Event()
        self._heard = True
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts reporting, on the running event loop."""
        self._task = asyncio.create_task(self._run())

    def hurry(self) -> None:
        """Makes the next report go out at once."""
        self._changed.set()

    def stop(self) -> None:
        """Ends reporting."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            await self._report()
            try:
                async with asyncio.timeout(self._period_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _report(self) -> None:
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                self._learn(await self._send(self._make()))
        except Exception as error:  # noqa: BLE001 - students must not notice; the next may get through
            if self._heard:
                logger.warning("the directory does not hear this replica: %r", error)
            self._heard = False
        else:
            self._heard = True
