"""Reads the YAML files that both sides are configured by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import ValidationError

__all__ = ["problems", "read_fields"]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # four times as fast where it was built


def problems(error: ValidationError) -> str:
    """Returns what is wrong with which fields of a config, in one line."""
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())


def read_fields(path: Path) -> dict[str, Any]:
    """Returns the fields of a YAML file and their values.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not YAML, or holds something else than fields.
    """
    try:
        data = yaml.load(path.read_text(), Loader=_LOADER) or {}  # noqa: S506 - it is one of the safe ones
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(  # noqa: TRY004 - a wrong file, not a wrong call
            f"{path}: got a {type(data).__name__}, expected fields and their values"
        )
    return data
