"""Reads the YAML files that both sides are configured by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_fields"]


def read_fields(path: Path) -> dict[str, Any]:
    """Returns the fields of a YAML file and their values.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not YAML, or holds something else than fields.
    """
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(  # noqa: TRY004 - a wrong file, not a wrong call
            f"{path}: got a {type(data).__name__}, expected fields and their values"
        )
    return data
