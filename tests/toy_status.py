"""A console over statuses that a test makes up."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from typing import TYPE_CHECKING, Any

from benchmarks.teachers import free_port
from preceptor.v1 import status_pb2 as pb
from preceptor.v1 import teacher_pb2
from services.teacher.console_config import ConsoleConfig
from services.teacher.console_server import ConsoleServer
from services.teacher.gate import gate_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.teacher.config import ServiceConfig
    from services.teacher.gate import Pass

__all__ = ["ToySource", "console_of", "status_of_a_day"]

NOW_S = 1_780_000_000.0


class ToySource:
    """Tells what it was given, to all of them; a tenant's view says whose it is."""

    def __init__(self, status: pb.GetStatusResponse) -> None:
        self.status = status
        self.asked: list[tuple[str, int]] = []
        self.refusals: list[tuple[str, str]] = []

    def answer(self, shown: Pass | None, history_s: int = 0) -> pb.GetStatusResponse:
        tenant = "" if shown is None else shown.tenant
        self.asked.append((tenant, history_s))
        answer = pb.GetStatusResponse()
        answer.CopyFrom(self.status)
        answer.tenant, answer.sees_all = tenant, shown is None
        return answer

    def refused(self, tenant: str, peer: str, reason: teacher_pb2.Reason, message: str) -> None:
        self.refusals.append((tenant, message))


@contextlib.contextmanager
def console_of(config: ServiceConfig, source: Any, port: int = 0) -> Iterator[int]:
    """Serves a console on an event loop of its own thread; yields its port."""
    port = port or free_port()
    config = config.model_copy(update={"console": ConsoleConfig(port=port)})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="console", daemon=True)
    thread.start()
    server = ConsoleServer(config, source, gate_of(config))
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(30)
    try:
        yield port
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def status_of_a_day(now_s: float = NOW_S, num_samples: int = 300) -> pb.GetStatusResponse:
    """A service with two replicas and five tenants, of which one is refused at times."""
    status = pb.GetStatusResponse(time_s=now_s, teacher="minilm", service_version="0.1.0", sees_all=True)
    names = {"search": 2.0, "ads": 1.0, "support": 1.0, "feeds": 1.0, "maps": 0.5}
    for number in range(2):
        status.replicas.add(
            address=f"10.0.0.{number + 5}:41501",
            uptime_s=8123 + 40 * number,
            num_conversations=4,
            queued_tokens=900,
            queue_s=0.021 + 0.01 * number,
            tokens_per_s=41200 + 800 * number,
            busy_share=0.71 + 0.09 * number,
            num_passes=90000,
            num_computed=410000,
            num_tenants_in_passes=260000,
            num_retained=180000,
            num_recomputed=16000,
            num_cached_rows=7_000_000,
            num_read_rows=1_100_000,
            cache_bytes=410 << 20,
            memory_bytes=1900 << 20,
        )
    for position, (name, weight) in enumerate(names.items()):
        status.tenants.add(
            name=name,
            num_conversations=2 if position < 3 else 1,
            num_turns=90_000 // (position + 1),
            num_tokens=31_000_000 // (position + 1),
            request_bytes=(3 << 30) // (position + 1),
            answer_bytes=(4 << 30) // (position + 1),
            queue_s=900 / (position + 1),
            compute_s=2500 / (position + 1),
            num_refusals=31 if name == "ads" else 0,
            weight=weight,
            queue_p50_ms=9 + 2 * position,
            queue_p99_ms=41 + 13 * position,
        )
        for number in range(2):
            is_open = number == 0 or position < 3
            status.conversations.add(
                id=f"{position + 1}{number}7ac1d{position}8be{number}",
                tenant=name,
                peer=f"ipv4:10.0.1.{position}:5{number}210",
                replica=status.replicas[number].address,
                opened_s=now_s - 700 * (position + 1),
                closed_s=0 if is_open else now_s - 33 * position,
                why="" if is_open else "the student left",
                num_turns=4000 + 700 * position,
                num_tokens=1_300_000,
                num_bytes=300 << 20,
                queue_s=44 + 9 * position,
                compute_s=130,
                num_refusals=31 if name == "ads" and not number else 0,
            )
    status.refusals.add(
        time_s=now_s - 4,
        tenant="ads",
        peer="ipv4:10.0.1.1:50210",
        replica=status.replicas[0].address,
        conversation="207ac1d18be0",
        reason=teacher_pb2.REASON_OVERLOADED,
        message="queued tokens of ads: got 4096 more than 61440, expected at most 65536",
        count=31,
    )
    for index in range(num_samples):
        sample = status.history.add(
            time_s=now_s - 2 * (num_samples - 1 - index), queued_tokens=900, num_replicas=2
        )
        sample.busy_share = 0.65 + 0.15 * math.sin(index / 17)
        for position, name in enumerate(names):
            turns = round(40 / (position + 1) * (1.2 + math.sin(index / (11 + 3 * position) + position)))
            sample.tenants.add(
                name=name,
                num_turns=turns,
                num_tokens=turns * 340,
                queue_s=turns * (0.011 + 0.004 * position * (1 + math.sin(index / 23))),
                compute_s=turns * 0.012,
                num_refusals=int(name == "ads" and index % 30 == 0),
            )
    return status
