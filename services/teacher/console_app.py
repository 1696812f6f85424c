"""What the console answers over HTTP: its page, and at `/api/status` how the service is, as JSON.

The page and its files are the same for everybody; what is going on is told to those only whom the service
lets in, and to each its own view. Knows neither gRPC nor Ray.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from preceptor.hosts import is_loopback
from preceptor.v1 import teacher_pb2
from services.teacher.audit import RefusalsLog
from services.teacher.console_answers import Answers
from services.teacher.console_files import console_files
from services.teacher.gate import AccessDeniedError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from preceptor.v1 import status_pb2
    from services.teacher.console_files import ConsoleFile
    from services.teacher.gate import Gate, Pass

__all__ = ["MAX_HISTORY_S", "StatusSource", "console_app"]

logger = logging.getLogger(__name__)

MAX_HISTORY_S = 600
_MAX_DIGITS = 4

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)


class StatusSource(Protocol):
    """What knows how the service is; see `status.StatusBoard`."""

    def answer(self, shown: Pass | None, history_s: int = 0) -> status_pb2.GetStatusResponse:
        """Returns what a caller may see."""
        ...

    def refused(self, tenant: str, peer: str, reason: teacher_pb2.Reason, message: str) -> None:
        """Counts a caller that was not let in."""
        ...


def console_app(source: StatusSource, gate: Gate | None) -> ASGIApp:
    """Returns the console.

    Args:
        source: of what it tells.
        gate: says who may see it; None: whoever is on this machine. A page from elsewhere can't then call
            itself by a name that leads here, and have this machine's browser ask for it (DNS rebinding).
    """
    desk = _Desk(source, gate)
    routes = [Route(path, _sender(file), methods=["GET"]) for path, file in console_files().items()]
    app = Starlette(
        routes=[
            *routes,
            Route("/api/access", desk.access, methods=["GET"]),
            Route("/api/status", desk.status, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _explain, Exception: _fail},
    )
    app.router.redirect_slashes = False
    return _Guard(app, only_here=gate is None)


class _Desk:
    """Tells those whom the service lets in how it is.

    Args:
        source, gate: as in `console_app`.
    """

    def __init__(self, source: StatusSource, gate: Gate | None) -> None:
        self._source = source
        self._gate = gate
        self._answers = Answers(source)
        self._refusals = RefusalsLog()

    async def access(self, _: Request) -> Response:
        """Says whether a token is asked for, so that the page asks for one first."""
        return JSONResponse({"needs_token": self._gate is not None})

    async def status(self, request: Request) -> Response:
        """Answers with the status as JSON, or says why not."""
        history_s = _history_s(request)
        try:
            shown = await self._admit(request)
        except AccessDeniedError as error:
            if "authorization" in request.headers:  # else it is the page, which asks for a token next
                self._write_down(error, request)
            return _error(401, str(error), {"www-authenticate": "Bearer"})
        return Response(await self._answers.answer(shown, history_s), media_type="application/json")

    async def _admit(self, request: Request) -> Pass | None:
        if self._gate is None:
            return None
        await self._gate.look()
        return self._gate.admit(
            [("authorization", each) for each in request.headers.getlist("authorization")]
        )

    def _write_down(self, error: AccessDeniedError, request: Request) -> None:
        peer = "console" if request.client is None else f"console:{request.client.host}:{request.client.port}"
        self._refusals.refused(error.tenant, peer, str(error))
        self._source.refused(error.tenant, peer, teacher_pb2.REASON_ACCESS_DENIED, str(error))


class _Guard:
    """Puts the headers on all answers, and refuses callers that mean another host.

    Args:
        app: what answers the others.
        only_here: whether nobody from elsewhere may ask.
    """

    def __init__(self, app: ASGIApp, *, only_here: bool) -> None:
        self._app = app
        self._only_here = only_here

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; see ASGI."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        app = self._app
        if self._only_here and not _means_here(scope):
            app = _error(421, "host: got a name of another machine, expected localhost or a loopback address")
        await app(scope, receive, send_with_headers)


def _means_here(scope: Scope) -> bool:
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1:
        return False
    name, separator, port = hosts[0].rpartition(":")
    if not (separator and port.isdecimal()):
        name = hosts[0]
    return is_loopback(name.strip("[]").lower())


def _history_s(request: Request) -> int:
    text = request.query_params.get("history_s", "0")
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS and int(text) <= MAX_HISTORY_S):
        raise HTTPException(400, f"history_s: got another, expected seconds from 0 to {MAX_HISTORY_S}")
    return int(text)


def _sender(file: ConsoleFile) -> Any:
    async def send(_: Request) -> Response:
        return Response(file.content, headers={"content-type": file.media_type})

    return send


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


async def _explain(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    return _error(error.status_code, error.detail, dict(error.headers or {}))


async def _fail(_: Request, error: Exception) -> Response:
    logger.error("the console could not tell how the service is: %r", error)
    return _error(500, "the service could not tell; its log has the reason")
