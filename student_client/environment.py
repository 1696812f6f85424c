"""What a run was made with: versions, machine, git commit. No variables of the environment, no secrets."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

__all__ = ["environment", "packages"]

_PACKAGES = (
    "preceptor",
    "torch",
    "ray",
    "transformers",
    "peft",
    "datasets",
    "numpy",
    "grpcio",
    "protobuf",
    "pydantic",
)
_GIT_TIMEOUT_S = 5


def environment() -> dict[str, Any]:
    """Returns what the running process is made of, fit for JSON."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "packages": packages(),
        "git": _git(),
    }


def packages() -> dict[str, str]:
    """Returns the versions of those packages that results depend on."""
    return {name: found for name in _PACKAGES if (found := _version(name))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Returns the commit of the working folder, and whether it was changed since; None outside of git."""
    commit = _run("git", "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _run("git", "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)}


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - the two commands above
            command, capture_output=True, text=True, check=True, timeout=_GIT_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
