"""Reads the files that a config names before Ray is started: of wrong ones Serve tells late and at length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from preceptor.settings import problems
from preceptor.tracing import check_tracing_installed
from services.teacher.families import resolve_folder
from services.teacher.tenants import Tenants

if TYPE_CHECKING:
    from pathlib import Path

    from services.teacher.config import ModuleConfig, ServiceConfig

__all__ = ["FilesError", "check_files"]


class FilesError(ValueError):
    """A file of the config is not what it should be; the message names the field and the file."""


def check_files(config: ServiceConfig) -> None:
    """Reads tenants and certificates, looks for the audit log's folder, the model, what traces need.

    Raises:
        FilesError: one of them is not there, or something else.
    """
    if config.tenants is not None:
        _check_tenants(config.tenants)
    if config.audit_log is not None and not config.audit_log.parent.is_dir():
        raise FilesError(f"audit_log: got {config.audit_log}, expected a file in a folder that is there")
    try:
        check_tracing_installed(config.signals.traces)
        if config.tls is not None:
            from services.teacher.certificates import CertificateFiles  # noqa: PLC0415 - brings gRPC

            CertificateFiles(config.tls)
        if config.model.family == "module":
            _check_module(config.model, config.python_path)
        else:
            resolve_folder(config.model.path)
    except (ValueError, OSError, ImportError) as error:
        raise FilesError(str(error)) from None


def _check_tenants(path: Path) -> None:
    try:
        Tenants.load(path)
    except OSError as error:
        raise FilesError(
            f"tenants: {path} can't be read: {error.strerror}; `preceptor tenant add {path} NAME` makes it"
        ) from None
    except ValidationError as error:
        raise FilesError(f"tenants: {path}: {problems(error)}") from None
    except ValueError as error:
        raise FilesError(f"tenants: {error}") from None


def _check_module(model: ModuleConfig, python_path: tuple[Path, ...]) -> None:
    from services.teacher.families.module_parts import find_factory  # noqa: PLC0415 - brings torch

    try:
        with model.weights.open("rb"):
            pass
    except OSError as error:
        raise FilesError(f"model.weights: {model.weights} can't be read: {error.strerror}") from None
    try:
        find_factory(model, python_path)
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the operator's code raises
        raise FilesError(
            f"model.factory: {model.factory} can't be imported: {type(error).__name__}: {error}"
        ) from None
