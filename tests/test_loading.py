"""A running engine from the operator's config."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from preceptor.terms import Reading
from services.teacher.config import ServiceConfig
from services.teacher.errors import OverloadedError
from services.teacher.loading import build_engine, build_queue, load_engine
from services.teacher.work import ForwardWork
from tests.tiny_models import load_from, save_tiny
from tests.toy import toy_config
from tests.toy_turns import alone, assert_close, assert_gradients, exchange_turn, speaker_of

if TYPE_CHECKING:
    from pathlib import Path

    from services.teacher.engine import Engine
    from services.teacher.families.base import Teacher


@pytest.fixture(autouse=True)
def _threads() -> Any:
    """Loading sets the process's threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _num_cached_rows(engine: Engine, *tenants: str) -> list[int]:
    """Serves one input to tenants in turn; returns the rows that each found in the cache."""
    turns = [
        exchange_turn(engine.teacher, (2, 2), Reading.ADD, speaker=speaker_of(tenant)) for tenant in tenants
    ]
    return [engine.forward(turn).result(30).cost.num_cached_rows for turn in turns]


def test_a_loaded_engine_runs_and_computes_in_the_configs_type(tmp_path: Path) -> None:
    engine = load_engine(toy_config(tmp_path, num_threads=2, dtype="bfloat16"))
    assert torch.get_num_threads() == 2
    assert engine.teacher.facts.dtype is torch.bfloat16
    turn = exchange_turn(engine.teacher)
    assert engine.forward(turn).result(30).values["reply"].dtype is torch.float32
    assert engine.backward(turn, {"reply": torch.ones(2, 2, 3)}).result(30).retained
    engine.stop()
    other = load_engine(toy_config(tmp_path))
    assert other.teacher.facts.dtype is torch.float32
    other.stop()


def test_once_an_engine_is_loaded_no_codec_makes_it_import_anything(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(toy_config(tmp_path).model_dump_json())
    code = (
        "import os, pathlib, sys\n"
        "from preceptor.codec import CodecSpec, TeacherCodec\n"
        "from services.teacher.config import ServiceConfig\n"
        "from services.teacher.loading import load_engine\n"
        "load_engine(ServiceConfig.model_validate_json(pathlib.Path(sys.argv[1]).read_text()))\n"
        "before = set(sys.modules)\n"
        "TeacherCodec.shapes(CodecSpec(kind='two_layer', message_len=2, hidden_dim=3), 8)\n"
        "assert set(sys.modules) == before, sorted(set(sys.modules) - before)[:5]\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)


@pytest.mark.parametrize(
    ("cache", "expected"),
    [({}, [0, 2, 0]), ({"shared": True}, [0, 2, 2]), ({"max_bytes": 0}, [0, 0, 0])],
    ids=["each", "shared", "none"],
)
def test_the_cache_is_each_tenants_own_unless_it_is_shared(
    tmp_path: Path, cache: dict[str, Any], expected: list[int]
) -> None:
    engine = load_engine(toy_config(tmp_path, cache=cache))
    assert _num_cached_rows(engine, "a", "a", "b") == expected
    engine.stop()


def test_what_is_kept_on_disk_outlives_the_engine(tmp_path: Path) -> None:
    config = toy_config(tmp_path, cache={"max_bytes": 0, "folder": tmp_path / "kept"})
    for expected in ([0, 2], [2, 2]):
        engine = load_engine(config)
        assert _num_cached_rows(engine, "a", "a") == expected
        engine.stop()


def test_graphs_keep_to_the_configs_budget(tmp_path: Path, tiny_teacher: Teacher) -> None:
    engine = build_engine(tiny_teacher, toy_config(tmp_path, engine={"max_retained_bytes": 0}))
    engine.start()
    turn = exchange_turn(tiny_teacher)
    engine.forward(turn).result(30)
    assert not engine.backward(turn, {"reply": torch.ones(2, 2, 3)}).result(30).retained
    engine.stop()
    assert build_engine(tiny_teacher, toy_config(tmp_path)).graphs.max_bytes == 2 << 30


def test_the_queue_keeps_to_the_configs_sizes_and_weights(tmp_path: Path, tiny_teacher: Teacher) -> None:
    config = toy_config(
        tmp_path,
        engine={"max_batch_tokens": 4, "tenant_weights": {"rich": 3.0}},
        limits={"max_queued_tokens": 80},
    )
    queue = build_queue(tiny_teacher, config, build_engine(tiny_teacher, config).graphs)
    for number in range(20):
        tenant = "rich" if number % 2 else "poor"
        queue.admit(ForwardWork(exchange_turn(tiny_teacher, speaker=speaker_of(tenant)), 0.0))
    with pytest.raises(OverloadedError, match="got 4 tokens more than 80, expected at most 80"):
        queue.admit(ForwardWork(exchange_turn(tiny_teacher, speaker=speaker_of("poor")), 0.0))
    first = [(queue.next_batch() or [])[0].turn.speaker.tenant for _ in range(8)]
    assert first.count("rich") == 6


def test_turns_of_all_lengths_share_a_pass_where_passes_cost_more_than_padding(
    tmp_path: Path,
) -> None:
    save_tiny(tmp_path, "encoder")
    teacher = load_from(tmp_path, "encoder")
    assert toy_config(tmp_path).engine.sizes("cpu") == (2048, 1)
    assert toy_config(tmp_path).engine.sizes("cuda") == (16384, 64)
    for min_bucket, num_tenants in ((1, 1), (8, 2)):
        config = toy_config(tmp_path, engine={"min_bucket": min_bucket})
        engine = build_engine(teacher, config)
        turns = [
            exchange_turn(teacher, (2, length), speaker=speaker_of(f"tenant-{length}")) for length in (2, 7)
        ]
        answers = [engine.forward(turn) for turn in turns]  # before it starts
        engine.start()
        for turn, answer in zip(turns, answers, strict=True):
            result = answer.result(30)
            assert result.cost.num_tenants == num_tenants
            assert_close(result.values["reply"], alone(teacher, turn)[0])
        engine.stop()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it
def test_compiled_layers_give_the_same(tmp_path: Path, tiny_teacher: Teacher) -> None:
    engine = load_engine(toy_config(tmp_path, engine={"compile_backend": "eager"}))
    for rows in (1, 3):
        turn = exchange_turn(tiny_teacher, (rows, 2))
        reply = engine.forward(turn).result(60).values["reply"]
        assert_close(reply, alone(tiny_teacher, turn)[0])
        got = engine.backward(turn, {"reply": torch.ones(rows, 2, 3)}).result(60)
        _, message, codec = alone(tiny_teacher, turn, torch.ones(rows, 2, 3))
        assert_gradients(got, message, codec)
    engine.stop()


def test_a_config_without_a_model_is_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    model = config.model.model_copy(update={"weights": tmp_path / "nothing"})
    with pytest.raises((ValueError, OSError)):
        load_engine(config.model_copy(update={"model": model}))
    assert isinstance(config, ServiceConfig)
