"""Moves tensors between the host and the teacher's device.

On CUDA copies go through pinned memory, each direction on a stream of its own, so that a batch's inputs
arrive while the one before is computed, and its results leave while the next one is. Nobody waits for a
result on the compute thread: a second thread hands it over once its copy is done. On the CPU there is nothing
to move.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = ["Delivery", "Transfers"]

_Named: TypeAlias = "Mapping[str, Tensor]"
_Parcel: TypeAlias = "tuple[Event, Callable[[], None], Callable[[Exception], None]]"


class Event(Protocol):
    """Something that will have happened, for example a copy."""

    def synchronize(self) -> None:
        """Waits for it."""
        ...


class Delivery:
    """A thread that calls back once events have happened, in their order; `start` it first."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Parcel | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="teacher-delivery", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether what is on its way will arrive."""
        return self._thread.is_alive()

    def after(self, event: Event, then: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        """Has `then` called after an event, or `failed` with why that could not be."""
        self._queue.put((event, then, failed))

    def stop(self) -> None:
        """Delivers what is on its way, then ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            event, then, failed = item
            try:
                event.synchronize()
                then()
            except Exception as error:  # noqa: BLE001 - told to whoever waits; what comes after must arrive
                failed(error)


class Transfers:
    """Copies to and from one device.

    Args:
        device: the teacher's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = _CudaCopies(device) if device.type == "cuda" else None

    def start(self) -> None:
        """Gets ready to deliver."""
        if self._copies is not None:
            self._copies.delivery.start()

    def stop(self) -> None:
        """Delivers what is on its way."""
        if self._copies is not None:
            self._copies.delivery.stop()

    def to_device(self, tensor: Tensor) -> Tensor:
        """Returns a host's tensor on the device, safe to use in the current stream."""
        return tensor if self._copies is None else self._copies.upload(tensor)

    @property
    def is_alive(self) -> bool:
        """Whether what is on its way will arrive."""
        return self._copies is None or self._copies.delivery.is_alive

    def deliver(
        self,
        values: Sequence[_Named],
        then: Callable[[list[dict[str, Tensor]]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Brings named tensors to the host and calls `then` with them, now or soon on another thread.

        Args:
            values: on the device.
            then: takes them on the host.
            failed: told if a copy, or what was computed before it, failed on the device.
        """
        if self._copies is None:
            then([dict(each) for each in values])
        else:
            self._copies.download(values, then, failed)


class _CudaCopies:  # pragma: no cover - needs a GPU; its tests are marked so
    """The two copy streams of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.delivery = Delivery()
        self._device = device
        self._incoming: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._outgoing: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(self, tensor: Tensor) -> Tensor:
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._incoming):
            moved = tensor.pin_memory().to(self._device, non_blocking=True)
        current.wait_stream(self._incoming)
        moved.record_stream(current)  # its memory was allocated for another stream
        return moved

    def download(
        self,
        values: Sequence[_Named],
        then: Callable[[list[dict[str, Tensor]]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._outgoing.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._outgoing):
            moved = [{name: self._copy_out(tensor) for name, tensor in each.items()} for each in values]
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._outgoing)
        self.delivery.after(event, lambda: then(moved), failed)

    def _copy_out(self, tensor: Tensor) -> Tensor:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        pinned.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._outgoing)
        return pinned
