"""Builds the console: `make console`. Needs node and npm; what comes out is committed and packaged.

A digest of the sources lies beside what was made of them, so that a test finds what is stale without node.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

__all__ = ["BUILT", "DIGEST_FILE", "SOURCES", "digest_of", "source_digest"]

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "console"
BUILT = ROOT / "services" / "teacher" / "console"
DIGEST_FILE = BUILT / "sources.sha256"

_PACKAGES = SOURCES / "node_modules"


def digest_of(folder: Path, leave_out: tuple[Path, ...] = ()) -> str:
    """Returns the SHA-256 of all files in a folder, by name and content, hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(path.is_relative_to(each) for each in leave_out):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def source_digest() -> str:
    """Returns the digest of what the console is built from."""
    return digest_of(SOURCES, leave_out=(_PACKAGES,))


def _licenses() -> str:
    """Returns the licenses of the packages that are part of the page, which want to go with it."""
    names = json.loads((SOURCES / "package.json").read_text())["dependencies"]
    texts = [f"{name}\n\n{(_PACKAGES / name / 'LICENSE').read_text().strip()}\n" for name in sorted(names)]
    return f"\n{'-' * 79}\n\n".join(texts)


def _build() -> None:
    for command in (["npm", "ci", "--ignore-scripts"], ["npm", "run", "build"]):
        subprocess.run(command, cwd=SOURCES, check=True)  # noqa: S603 - npm of whoever builds
    (BUILT / "LICENSES.txt").write_text(_licenses())
    DIGEST_FILE.write_text(source_digest() + "\n")


if __name__ == "__main__":
    _build()
