"""Builds a module and finds its parts, as the operator's config says."""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from services.teacher.config import ModuleConfig

__all__ = ["ModuleParts", "build_module", "find_factory", "find_parts", "load_state"]


@dataclass(frozen=True)
class ModuleParts:
    """A module and its parts, by the paths of the config.

    Attributes:
        module: the whole of it.
        embed: the inputs, by name, to [B, D] or [B, L, D].
        blocks: each keeps that shape.
        norms: the final norm, if there is one.
        head: [B, D] to [B, outputs] or [B]; None: there is none.
        masked: those of the blocks that take `mask`, [B, L], bool.
    """

    module: nn.Module
    embed: nn.Module
    blocks: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    head: nn.Module | None
    masked: frozenset[nn.Module]

    def run(self, block: nn.Module, hidden_states: Tensor, mask: Tensor) -> Tensor:
        """Runs a block or norm on [B, L, D] with mask [B, L], or on rows [B, D], which have no mask."""
        masked = block in self.masked and hidden_states.ndim > mask.ndim
        output: Tensor = block(hidden_states, mask=mask) if masked else block(hidden_states)
        return output


def build_module(config: ModuleConfig, python_path: Sequence[Path]) -> nn.Module:
    """Builds a module by its factory; `python_path` as in `find_factory`.

    Raises:
        ValueError: the factory is none, or gives no module.
        ImportError: it can't be imported.
    """
    module = find_factory(config, python_path)(**config.kwargs)
    if not isinstance(module, nn.Module):
        raise ValueError(  # noqa: TRY004 - a wrong value of the config
            f"model.factory: got a {type(module).__name__} from {config.factory!r}, expected a torch module"
        )
    return module


def find_factory(config: ModuleConfig, python_path: Sequence[Path]) -> Callable[..., object]:
    """Imports what builds a module.

    Args:
        config: names it.
        python_path: folders to import it from, before all others.

    Raises:
        ValueError: the factory is none.
        ImportError: it can't be imported.
    """
    for entry in reversed([str(path) for path in python_path]):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    module_name, _, attribute = config.factory.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"model.factory: got {config.factory!r}, expected package.module:callable")
    factory = getattr(importlib.import_module(module_name), attribute, None)
    if not callable(factory):
        raise ValueError(  # noqa: TRY004 - a wrong value of the config
            f"model.factory: got {config.factory!r}, expected a callable in {module_name}"
        )
    return cast("Callable[..., object]", factory)


def load_state(module: nn.Module, path: Path) -> None:
    """Loads a module's whole state from a safetensors file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"model.weights: got {path}, expected the module's state: {error}") from error


def find_parts(module: nn.Module, config: ModuleConfig) -> ModuleParts:
    """Finds the parts by the paths of the config.

    Raises:
        ValueError: there is none at a path; names the field.
    """

    def find(field: str, path: str) -> nn.Module:
        try:
            return module.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"model.{field}: got {path!r}, expected a submodule: {error}") from None

    blocks = find("blocks", config.blocks)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential):
        raise ValueError(  # noqa: TRY004 - a wrong value of the config
            f"model.blocks: got a {type(blocks).__name__} at {config.blocks!r}, expected a ModuleList"
        )
    return ModuleParts(
        module=module,
        embed=find("embed", config.embed),
        blocks=tuple(blocks),
        norms=() if config.norm is None else (find("norm", config.norm),),
        head=None if config.head is None else find("head", config.head),
        masked=frozenset(block for block in blocks if "mask" in inspect.signature(block.forward).parameters),
    )
