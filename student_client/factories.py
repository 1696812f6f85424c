"""Finds what a config names as `package.module:callable`."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["load_factory"]


def load_factory(path: str, python_path: Sequence[Path], field: str) -> Callable[..., Any]:
    """Returns a callable by its import path.

    Args:
        path: `package.module:callable`.
        python_path: folders to import it from, before all others.
        field: of the config, for errors.

    Raises:
        ValueError: there is none.
    """
    for folder in reversed([str(folder) for folder in python_path]):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    module_name, _, name = path.partition(":")
    try:
        factory: Callable[..., Any] = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{field}: got {path!r}, expected package.module:callable ({error})") from None
    return factory
