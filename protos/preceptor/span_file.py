"""A file that gets a line of JSON for each span, also from several processes, and never fills a disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["append", "file_of", "line_of", "make_room", "resource_json"]

_MAX_FILE_BYTES = 1_000_000_000


def file_of(path: Path) -> Callable[[Sequence[ReadableSpan]], str]:
    """Returns what writes spans to a file, and why that failed; empty: it did not."""
    resource = ""

    def send(spans: Sequence[ReadableSpan]) -> str:
        nonlocal resource
        resource = resource or resource_json(spans[0].resource)
        lines = "".join(f"{line_of(span, resource)}\n" for span in spans)
        try:
            append(path, lines.encode())
        except OSError as error:
            return error.strerror or str(error)
        return ""

    return send


def append(path: Path, content: bytes, max_file_bytes: int = _MAX_FILE_BYTES) -> None:
    """Appends in one piece, since others may append to the file too; what a full disk cuts off is lost.

    The file is opened each time, so that it may be moved away.

    Args:
        path: of the file.
        content: whole lines.
        max_file_bytes: a file that has as many becomes NAME.1, in the place of an older one.

    Raises:
        OSError: it can't be written.
    """
    file = _opened(path)
    try:
        if os.fstat(file).st_size >= max_file_bytes and make_room(path, file):
            full, file = file, _opened(path)
            os.close(full)
        if os.write(file, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)


def make_room(path: Path, file: int) -> bool:
    """Moves a file to NAME.1, unless another process does or has; whether there is another file now.

    Args:
        path: of the file.
        file: that it was opened as; locked, so that only one moves it, and not the one that begins after it.
    """
    with contextlib.suppress(OSError):  # it may be appended to all the same
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        target = Path(os.path.realpath(path))
        if os.path.samestat(target.stat(), os.fstat(file)):
            target.rename(f"{target}.1")
        return True
    return False


def line_of(span: ReadableSpan, resource: str | None = None) -> str:
    """Returns what `span.to_json(indent=None)` says, in a fifth of its time.

    Args:
        span: that has ended.
        resource: its resource's part of the line, if it is known already; see `resource_json`.
    """
    context, parent = span.context, span.parent
    parent_id = "null" if parent is None else f'"0x{parent.span_id:016x}"'
    status = {"status_code": span.status.status_code.name}
    if span.status.description:
        status["description"] = span.status.description
    return (
        f'{{"name": {json.dumps(span.name)}, "context": {{"trace_id": "0x{context.trace_id:032x}", '
        f'"span_id": "0x{context.span_id:016x}", "trace_state": "{context.trace_state!r}"}}, '
        f'"kind": "{span.kind}", "parent_id": {parent_id}, '
        f'"start_time": "{_iso(span.start_time or 0)}", "end_time": "{_iso(span.end_time or 0)}", '
        f'"status": {json.dumps(status)}, "attributes": {json.dumps(dict(span.attributes or {}))}, '
        f'"events": [], "links": [], "resource": {resource or resource_json(span.resource)}}}'
    )


def resource_json(resource: Resource) -> str:
    """Returns the part of a line that is the same for all spans of a process."""
    return json.dumps({"attributes": dict(resource.attributes), "schema_url": resource.schema_url})


def _iso(time_ns: int) -> str:
    """Returns nanoseconds of the epoch as a time in UTC."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{_iso_of_second(seconds)}.{rest // 1000:06d}Z"


@lru_cache(maxsize=64)
def _iso_of_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
