"""Fixtures: a tiny BERT in a folder, and a server whose teacher it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.teacher.config import ServiceConfig
from tests.tiny_models import load_from, save_tiny
from tests.toy_server import ToyServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["folder", "teacher"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokenizer: a student's start, and the teacher."""
    folder = tmp_path_factory.mktemp("bert")
    save_tiny(folder, "classifier")
    return folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Iterator[ToyServer]:
    model = {"family": "encoder", "path": str(folder)}
    config = ServiceConfig.model_validate({"name": "bert", "auth": "none", "model": model})
    server = ToyServer(load_from(folder, "encoder"), config)
    server.start()
    yield server
    server.close()
