"""The teacher's servicer and engine on a bare `grpc.aio` server: what benchmarks measure without Ray.

    python -m benchmarks.bare_server CONFIG.json [--engine serial] [--profile FOLDER] [--metrics FILE]

Serves until its standard input is closed, so it never outlives who started it. The engine `serial` is the
teacher shared the simple way, as Petals does: first come, first served, no turns computed together, and each
backward pass computes its forward pass again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import pstats
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import grpc

from preceptor.v1.status_pb2 import GetStatusResponse
from preceptor.v1.status_pb2_grpc import add_StatusServiceServicer_to_server
from preceptor.v1.teacher_pb2_grpc import add_TeacherServiceServicer_to_server
from services.teacher.config import ServiceConfig
from services.teacher.connections import CONNECTION_OPTIONS
from services.teacher.directory import REPORT_PERIOD_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from services.teacher.engine import Engine
    from services.teacher.metrics import ReplicaMetrics, Update
    from services.teacher.servicer import TeacherServicer

__all__ = ["bare_server", "off_file", "server_in_this_process"]

_READY_TIMEOUT_S = 120.0
_MAX_QUEUED_TURNS = 1024
_COMPUTE_THREAD = "teacher-compute"


@contextlib.contextmanager
def bare_server(
    config: ServiceConfig,
    folder: Path,
    *,
    engine: Literal["shared", "serial"] = "shared",
    profile: Path | None = None,
    metrics: Path | None = None,
) -> Iterator[str]:
    """Runs a server in a process of its own while open; yields its `host:port`.

    Args:
        config: as for Ray Serve, with a port of its own.
        folder: where the config is written to.
        engine: the service's own, or the simple one that it is compared with.
        profile: where profiles of its threads are written to at the end; None: nowhere.
        metrics: a file that gets HOST:PORT of the metrics of a Ray that it starts for them; None: none.
            Nothing is told while there is an `off_file` beside it.
    """
    path = folder / f"bare_server_{config.port}.json"
    path.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "benchmarks.bare_server", str(path), "--engine", engine]
    if profile is not None:
        command += ["--profile", str(profile)]
    if metrics is not None:
        command += ["--metrics", str(metrics)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:  # noqa: S603 - our own module
        try:
            _wait_until_ready(config)
            yield f"{config.host}:{config.port}"
        finally:
            process.communicate()


@contextlib.contextmanager
def server_in_this_process(config: ServiceConfig) -> Iterator[str]:
    """Serves on a thread of this process while open; yields its `host:port`."""
    ended = threading.Event()
    thread = threading.Thread(
        target=lambda: asyncio.run(_serve(config, "shared", None, ended.wait)), name="teacher", daemon=True
    )
    thread.start()
    try:
        _wait_until_ready(config)
        yield f"{config.host}:{config.port}"
    finally:
        ended.set()
        thread.join()


def _wait_until_ready(config: ServiceConfig) -> None:
    """Waits until the server takes connections; asks it nothing, since it may answer its tenants only."""
    target = f"{config.host}:{config.port}"
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        grpc.channel_ready_future(channel).result(_READY_TIMEOUT_S)


def _load_engine(config: ServiceConfig, kind: str) -> Engine:
    # Imported by the server's process only.
    from services.teacher.loading import load_engine, load_frozen

    if kind == "shared":
        return load_engine(config)
    from services.teacher.engine import Engine
    from services.teacher.fifo import FifoQueue
    from services.teacher.graphs import GraphStore
    from services.teacher.teaching import Teaching

    queue = FifoQueue(_MAX_QUEUED_TURNS)
    engine = Engine(Teaching(load_frozen(config), None), queue=queue, graphs=GraphStore(max_bytes=0))
    engine.start()
    return engine


def off_file(metrics: Path) -> Path:
    """Returns the file that switches metrics off while it is there, by the one that says where they are."""
    return metrics.with_name(f"{metrics.name}.off")


class _Switched:
    """What is told of a replica, or nothing."""

    def __init__(self, source: ReplicaMetrics, off: Path) -> None:
        self._source = source
        self._off = off

    def updates(self) -> Iterable[Update]:
        """Returns what has changed."""
        return [] if self._off.exists() else self._source.updates()


@contextlib.contextmanager
def _metrics_of(engine: Engine, config: ServiceConfig, path: Path) -> Iterator[None]:
    """Tells a Ray of its own of the engine while open, as a replica does."""
    import ray

    from preceptor.local_ray import connected_ray
    from services.teacher.metrics import ReplicaMetrics
    from services.teacher.ray_metrics import MetricsPusher

    with connected_ray(num_cpus=1):
        (node,) = ray.nodes()
        path.write_text(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}")
        source = ReplicaMetrics(engine, config.name, f"{config.host}:{config.port}")
        pusher = MetricsPusher(_Switched(source, off_file(path)))
        pusher.start()
        yield
        pusher.stop()


async def _serve(config: ServiceConfig, kind: str, metrics: Path | None, end: Callable[[], object]) -> None:
    """Serves until `end` returns, which may block."""
    from services.teacher.logs import write_logs_of

    write_logs_of(config, f"{config.host}:{config.port}")
    engine = _load_engine(config, kind)
    if engine.signals.spans is not None:
        engine.signals.spans.replica = f"{config.host}:{config.port}"
    with contextlib.ExitStack() as stack:
        if metrics is not None:
            stack.enter_context(_metrics_of(engine, config, metrics))
        await _answer(engine, config, end)
    engine.stop()


async def _answer(engine: Engine, config: ServiceConfig, end: Callable[[], object]) -> None:
    from services.teacher.health import add_health_to_server
    from services.teacher.servicer import TeacherServicer

    limit = config.limits.max_frame_bytes
    limits = [("grpc.max_send_message_length", limit), ("grpc.max_receive_message_length", limit)]
    server = grpc.aio.server(options=[*limits, *CONNECTION_OPTIONS])
    servicer = TeacherServicer(engine, config)
    add_TeacherServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    add_StatusServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    add_health_to_server(servicer, server)
    server.add_insecure_port(f"{config.host}:{config.port}")
    await server.start()
    async with _console(config, servicer):
        await asyncio.get_running_loop().run_in_executor(None, end)
    await server.stop(grace=0.5)


@contextlib.asynccontextmanager
async def _console(config: ServiceConfig, servicer: TeacherServicer) -> AsyncIterator[None]:
    """Serves the console, if there is to be one, as the directory would: by what the replica reports."""
    if config.console is None:
        yield
        return
    from services.teacher.console_server import ConsoleServer
    from services.teacher.gate import gate_of
    from services.teacher.status import StatusBoard

    board = StatusBoard(config.name)
    console = ConsoleServer(config, board, gate_of(config))

    async def report() -> None:
        while True:
            status = servicer.report(f"{config.host}:{config.port}").status
            if status:
                board.hear(GetStatusResponse.FromString(status))
            await asyncio.sleep(REPORT_PERIOD_S)

    await console.start()
    reporting = asyncio.create_task(report())
    yield
    reporting.cancel()
    await console.stop()


def _profiled(serve: Callable[[], None], folder: Path) -> None:
    """Serves under one profiler for the event loop's thread and one for the compute thread.

    Two at a time need CPython 3.11. A profiler slows Python down, tensors hardly: read the shares.
    """
    profiles = {"loop": cProfile.Profile(), "compute": cProfile.Profile()}

    def enable_in_compute_thread(*_: Any) -> None:
        sys.setprofile(None)
        if threading.current_thread().name == _COMPUTE_THREAD:
            profiles["compute"].enable()

    threading.setprofile(enable_in_compute_thread)
    profiles["loop"].runcall(serve)
    folder.mkdir(parents=True, exist_ok=True)
    for name, profile in profiles.items():
        profile.dump_stats(folder / f"{name}.prof")
        with (folder / f"{name}.txt").open("w") as file:
            for order in ("tottime", "cumulative"):
                pstats.Stats(profile, stream=file).sort_stats(order).print_stats(50)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare_server")
    parser.add_argument("config", type=Path, help="a ServiceConfig, JSON")
    parser.add_argument("--engine", choices=["shared", "serial"], default="shared")
    parser.add_argument("--profile", type=Path, help="a folder to write profiles of both threads to")
    parser.add_argument("--metrics", type=Path, help="a file to write where Ray tells of metrics to")
    options = parser.parse_args()
    config = ServiceConfig.model_validate_json(options.config.read_text())

    def serve() -> None:
        asyncio.run(_serve(config, options.engine, options.metrics, sys.stdin.read))

    if options.profile is None:
        serve()
    else:
        _profiled(serve, options.profile)


if __name__ == "__main__":
    _main()
