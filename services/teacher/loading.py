"""Builds a running engine from the operator's config."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

import torch

from preceptor.codec import CodecSpec, TeacherCodec
from services.teacher.disk_tier import DiskTier
from services.teacher.engine import Engine
from services.teacher.families import load_teacher
from services.teacher.graphs import GraphStore
from services.teacher.observations import ObservationCache
from services.teacher.scheduling import FairQueue
from services.teacher.spans import spans_of
from services.teacher.teaching import Teaching, batch_key

if TYPE_CHECKING:
    from services.teacher.config import CacheConfig, ServiceConfig
    from services.teacher.families.base import Teacher
    from services.teacher.gate import Gate

__all__ = ["build_engine", "build_queue", "load_engine", "load_frozen"]


def load_engine(config: ServiceConfig, gate: Gate | None = None) -> Engine:
    """Loads the frozen model of a config and returns a started engine of it.

    Args:
        config: the operator's.
        gate: knows the tenants' shares and limits; None: as the config says.

    Raises:
        ValueError, OSError, ImportError: as in `load_teacher`, or what traces need is not installed.
    """
    engine = build_engine(load_frozen(config), config, gate)
    engine.signals.spans = spans_of(config)
    # A million objects of torch and transformers are here to stay; the collector need not look at them again
    # while turns wait.
    gc.collect()
    gc.freeze()
    engine.start()
    return engine


def load_frozen(config: ServiceConfig) -> Teacher:
    """Loads the frozen model of a config, on the device and in the type that it asks for.

    Raises:
        ValueError, OSError, ImportError: as in `load_teacher`.
    """
    device = torch.device("cuda" if config.num_gpus > 0 else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(config.num_threads)
    default = torch.bfloat16 if device.type == "cuda" else torch.float32
    return load_teacher(config, device, getattr(torch, config.dtype) if config.dtype else default)


def build_engine(teacher: Teacher, config: ServiceConfig, gate: Gate | None = None) -> Engine:
    """Returns an engine that serves many tenants, not started yet."""
    # torch's meta device imports for seconds when it first draws numbers; no student shall wait for that, nor
    # all others for the event loop on which a conversation is opened.
    TeacherCodec.shapes(CodecSpec(kind="two_layer", message_len=1, hidden_dim=1), teacher.facts.hidden_size)
    graphs = GraphStore(config.engine.max_retained_bytes)
    if config.engine.compile_backend is not None:
        teacher.compile(config.engine.compile_backend)
    max_batch_tokens, _ = config.engine.sizes(teacher.device.type)
    teaching = Teaching(
        teacher,
        _build_cache(config.cache),
        max_batch_tokens=max_batch_tokens,
        shares_cache=config.cache.shared,
        in_buckets=config.engine.compile_backend is not None,
    )
    return Engine(teaching, queue=build_queue(teacher, config, graphs, gate), graphs=graphs)


def build_queue(
    teacher: Teacher, config: ServiceConfig, graphs: GraphStore, gate: Gate | None = None
) -> FairQueue:
    """Returns the queue that shares a teacher's passes between tenants."""
    max_batch_tokens, min_bucket = config.engine.sizes(teacher.device.type)
    return FairQueue(
        graphs,
        key_of=batch_key(teacher, min_bucket),
        max_batch_tokens=max_batch_tokens,
        max_queued_tokens=config.limits.max_queued_tokens,
        max_wait_s=config.engine.max_wait_ms / 1000.0,
        weights=config.engine.tenant_weights if gate is None else gate.weights,
        max_queued_by_tenant=None if gate is None else gate.max_queued_tokens,
        clock=time.perf_counter,
    )


def _build_cache(config: CacheConfig) -> ObservationCache | None:
    if not config.max_bytes and config.folder is None:
        return None
    disk = None if config.folder is None else DiskTier(config.folder, config.max_disk_bytes)
    return ObservationCache(config.max_bytes, disk)
