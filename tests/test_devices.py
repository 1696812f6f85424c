"""The engine with compiled layers, and on a GPU, against the same engine plain and on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from preceptor.codec import CodecSpec, TeacherCodec
from preceptor.terms import Reading
from services.teacher.families import load_teacher
from services.teacher.loading import build_engine
from services.teacher.work import ExchangeTurn, Speaker
from tests.toy import HIDDEN, toy_config
from tests.toy_frames import ids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from services.teacher.config import ServiceConfig

SPEC = CodecSpec(message_dim=3)
ROWS = (2, 3, 1, 3)


def _turns(device: torch.device) -> list[ExchangeTurn]:
    torch.manual_seed(0)
    return [
        ExchangeTurn(
            codec=TeacherCodec(SPEC, HIDDEN).to(device),
            codec_version=1,
            message=torch.randn(rows, 2, 3),
            mask=torch.ones(rows, 2, dtype=torch.bool),
            reading=Reading.BESIDE,
            split_layer=1,
            inputs={"ids": ids(rows)},
            wants_gradient=True,
            speaker=Speaker(f"tenant-{index}", f"conversation-{index}"),
        )
        for index, rows in enumerate(ROWS)
    ]


def _learn(config: ServiceConfig, device: torch.device) -> list[Tensor]:
    """Lets a few tenants talk at once; returns replies and gradients."""
    engine = build_engine(load_teacher(config, device, torch.float32), config)
    turns = _turns(device)
    replies = [engine.forward(turn) for turn in turns]  # before it starts, so that they share a pass
    engine.start()
    values = [each.result(300).values["reply"] for each in replies]
    gradients = [
        engine.backward(turn, {"reply": torch.ones_like(turn.message)}).result(300) for turn in turns
    ]
    engine.stop()
    assert replies[0].result().cost.num_tenants > 1
    messages = [each.message for each in gradients if each.message is not None]
    return [*values, *messages, *(tensor for each in gradients for tensor in each.codec.values())]


def _assert_close(got: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    assert len(got) == len(expected) > 2 * len(ROWS)
    for one, other in zip(got, expected, strict=True):
        assert one.device.type == "cpu"
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore")  # what torch's compiler says of itself
def test_compiled_layers_in_bucketed_shapes_give_the_same(toy_folder: Path) -> None:
    plain = _learn(toy_config(toy_folder), torch.device("cpu"))
    compiled = _learn(toy_config(toy_folder, engine={"compile_backend": "aot_eager"}), torch.device("cpu"))
    _assert_close(compiled, plain, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same(toy_folder: Path) -> None:
    config = toy_config(toy_folder)
    _assert_close(_learn(config, torch.device("cuda")), _learn(config, torch.device("cpu")), 1e-4)
