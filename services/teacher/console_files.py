"""The files of the console's page, as they were built from `console/` and are part of the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

__all__ = ["ConsoleFile", "console_files"]

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True)
class ConsoleFile:
    """A file as it is sent.

    Attributes:
        content: its bytes.
        media_type: what they are.
    """

    content: bytes
    media_type: str


def console_files() -> dict[str, ConsoleFile]:
    """Returns the files by path; `/` is the page."""
    folder = resources.files("services.teacher") / "console"
    found: dict[str, ConsoleFile] = {}
    for entry in folder.iterdir():
        media_type = _TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            path = "/" if entry.name == "index.html" else f"/{entry.name}"
            found[path] = ConsoleFile(entry.read_bytes(), media_type)
    return found
