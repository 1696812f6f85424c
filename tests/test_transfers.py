"""Moving tensors to and from the teacher's device, and delivering results off the compute thread."""

from __future__ import annotations

import threading

import pytest
import torch

from services.teacher.transfers import Delivery, Transfers


class Copy:
    """A copy that is done when a test says so."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def synchronize(self) -> None:
        assert self.done.wait(30)


def _never(error: Exception) -> None:
    raise error


class BrokenCopy:
    """A copy that fails, as those after an error on a GPU do."""

    def synchronize(self) -> None:
        raise RuntimeError("device-side assert")


def test_a_failed_copy_is_told_and_what_comes_after_it_arrives() -> None:
    delivery, copy, got = Delivery(), Copy(), []
    copy.done.set()
    delivery.start()
    delivery.after(BrokenCopy(), lambda: got.append("arrived"), lambda error: got.append(str(error)))
    delivery.after(copy, lambda: got.append("next"), _never)
    assert delivery.is_alive
    delivery.stop()
    assert got == ["device-side assert", "next"]
    assert not delivery.is_alive


def test_results_are_delivered_in_order_once_their_copies_are_done() -> None:
    delivery, copies, got = Delivery(), [Copy(), Copy()], []
    delivery.start()
    for number, copy in enumerate(copies):
        delivery.after(copy, lambda number=number: got.append(number), _never)  # type: ignore[misc]
    copies[1].done.set()
    assert got == []
    copies[0].done.set()
    delivery.stop()
    assert got == [0, 1]


def test_stopping_delivers_what_is_on_its_way() -> None:
    delivery, copy, got = Delivery(), Copy(), []
    delivery.start()
    delivery.after(copy, lambda: got.append(threading.current_thread().name), _never)
    copy.done.set()
    delivery.stop()
    assert got == ["teacher-delivery"]


def test_on_the_cpu_nothing_is_moved_and_nobody_waits() -> None:
    transfers = Transfers(torch.device("cpu"))
    got: list[list[dict[str, torch.Tensor]]] = []
    transfers.start()
    tensor = torch.ones(3)
    assert transfers.to_device(tensor) is tensor
    transfers.deliver([{"reply": tensor}, {}], got.append, _never)
    assert got[0][0]["reply"] is tensor
    assert got[0][1] == {}
    transfers.stop()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_values_arrive_unchanged_on_both_sides() -> None:
    transfers = Transfers(torch.device("cuda"))
    transfers.start()
    sent = [torch.randn(64, 512) for _ in range(8)]
    arrived: list[torch.Tensor] = []
    for tensor in sent:
        moved = transfers.to_device(tensor)
        assert moved.is_cuda
        transfers.deliver([{"double": moved * 2}], lambda values: arrived.append(values[0]["double"]), _never)
    transfers.stop()
    for tensor, back in zip(sent, arrived, strict=True):
        assert torch.equal(back, tensor * 2)
