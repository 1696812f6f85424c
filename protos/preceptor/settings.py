"""Reads the YAML files that both sides are configured by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import ValidationError

__all__ = ["fields_of", "problems", "read_fields"]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # four times as fast where it was built


def fields_of(error: ValidationError) -> list[str]:
    """Returns the dotted names of the fields that are wrong; empty for the whole."""
    return [".".join(map(str, each["loc"])) for each in error.errors()]


def problems(error: ValidationError) -> str:
    """Returns what is wrong with which fields of a config, in one line."""
    messages = (each["msg"].removeprefix("Value error, ") for each in error.errors())
    found = zip(fields_of(error), messages, strict=True)
    return "; ".join(f"{where}: {what}" if where else what for where, what in found)


def read_fields(path: Path) -> dict[str, Any]:
    """Returns the fields of a YAML file and their values.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not YAML, or holds something else than fields.
    """
    try:
        data = yaml.load(path.read_text(), Loader=_LOADER) or {}  # noqa: S506 - it is one of the safe ones
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {_where_and_what(error)}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not YAML: got a byte that is no UTF-8 at {error.start}") from None
    if not isinstance(data, dict):
        raise ValueError(  # noqa: TRY004 - a wrong file, not a wrong call
            f"{path}: got a {type(data).__name__}, expected fields and their values"
        )
    return data


def _where_and_what(error: yaml.YAMLError) -> str:
    """Returns what is wrong in one line, without the text around it, which may be nobody's business."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        said = ", ".join(each for each in (error.context, error.problem) if each)
        return f"line {mark.line + 1}, column {mark.column + 1}: {said}"
    return " ".join(str(error).split())
