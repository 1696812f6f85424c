"""The console's server, in the directory's process and on its event loop.

Students must not notice who looks: connections are bounded in number and time, and none can hold the loop up.
Knows neither gRPC nor Ray.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.teacher.console_app import console_app
from services.teacher.tls_files import RenewedContext

if TYPE_CHECKING:
    from services.teacher.config import ServiceConfig
    from services.teacher.console_app import StatusSource
    from services.teacher.gate import Gate

__all__ = ["ConsoleServer"]

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
PATIENCE_S = 20.0

_BACKLOG = 64
_MAX_HEAD_BYTES = 16 << 10


class ConsoleServer:
    """Serves the console from `start` to `stop`.

    Args:
        config: of the service; it has a `console`.
        source: of what the console tells.
        gate: says who may see it; None: whoever is on this machine.
    """

    def __init__(self, config: ServiceConfig, source: StatusSource, gate: Gate | None) -> None:
        assert config.console is not None  # noqa: S101 - its caller's
        self._host, self._port = config.host, config.console.port
        self._tls = config.tls
        self._app = console_app(source, gate)
        self._has_warned = False
        self._listener: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def keep_up(self) -> None:
        """Starts to listen unless it does; what is in the way is told once, and tried again next time."""
        if self._server is not None:
            return
        try:
            await self.start()
        except Exception as error:  # noqa: BLE001 - whatever it is, students find the replicas
            if not self._has_warned:
                logger.warning("nobody can look at the console yet: port %d: %r", self._port, error)
            self._has_warned = True

    async def start(self) -> None:
        """Starts to listen.

        Raises:
            OSError: the port is in use.
            ValueError: the certificates can't be read.
        """
        tls = None if self._tls is None else RenewedContext(self._tls)
        # Not `serve`, which would take the process's signals for itself; nor `startup`, which lets those
        # stay for a minute that never speak TLS.
        server = uvicorn.Server(_config(self._app))
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        listener = _listener(self._host, self._port)
        try:
            at_port = await asyncio.get_running_loop().create_server(
                lambda: _Connection(server.config, server.server_state, app_state={}),
                sock=listener,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else PATIENCE_S,
                backlog=_BACKLOG,
            )
        except Exception:
            listener.close()
            raise
        server.servers, server.started = [at_port], True
        self._listener, self._server = listener, server
        self._task = asyncio.create_task(server.main_loop())

    async def stop(self) -> None:
        """Stops to listen and ends what is open."""
        if self._server is None or self._task is None or self._listener is None:
            return
        self._server.should_exit = self._server.force_exit = True
        await self._task
        await self._server.shutdown([self._listener])


class _Connection(H11Protocol):
    """A connection that ends when nothing was answered for a while: nothing was asked, or nothing is read.

    When there are too many, the one that has waited longest goes; who looks asks every second.
    """

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > MAX_CONNECTIONS:
            others = (each for each in self.connections if isinstance(each, _Connection))
            min(others, key=_Connection.due_s).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._due is not None:
            self._due.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._wait()
        super().on_response_complete()

    def due_s(self) -> float:
        """When it ends unless something is answered, on the loop's clock."""
        return self.loop.time() if self._due is None else self._due.when()

    def _wait(self) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = self.loop.call_later(PATIENCE_S, self.transport.abort)


def _config(app: Any) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it would tell of each broken request
    return uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
    )


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
