"""The teacher's servicer and engine on a bare `grpc.aio` server: what Ray Serve is measured against.

    python -m benchmarks.bare_server CONFIG.json

Serves until its standard input is closed, so it never outlives who started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from preceptor.v1.teacher_pb2_grpc import add_TeacherServiceServicer_to_server
from services.teacher.config import ServiceConfig
from services.teacher.local import wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["bare_server"]

_READY_TIMEOUT_S = 120.0


@contextlib.contextmanager
def bare_server(config: ServiceConfig, folder: Path) -> Iterator[str]:
    """Runs a server in a process of its own while open; yields its `host:port`.

    Args:
        config: as for Ray Serve, with a port of its own.
        folder: where the config is written to.
    """
    path = folder / "bare_server.json"
    path.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "benchmarks.bare_server", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:  # noqa: S603 - our own module
        try:
            wait_until_ready(config, _READY_TIMEOUT_S)
            yield f"{config.host}:{config.port}"
        finally:
            process.communicate()


async def _serve(config: ServiceConfig) -> None:
    # Imported by the server's process only; brings Ray along, but starts none.
    from services.teacher.app import load_engine
    from services.teacher.servicer import TeacherServicer

    engine = load_engine(config)
    limit = config.limits.max_frame_bytes
    server = grpc.aio.server(
        options=[("grpc.max_send_message_length", limit), ("grpc.max_receive_message_length", limit)]
    )
    servicer = TeacherServicer(engine, config)
    add_TeacherServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"{config.host}:{config.port}")
    await server.start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(grace=None)
    engine.stop()


if __name__ == "__main__":
    asyncio.run(_serve(ServiceConfig.model_validate_json(Path(sys.argv[1]).read_text())))
