"""Rows without labels: how they are read, and what they count for."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from student_client import losses
from student_client.data import DataError, load_splits
from student_client.data_config import DataConfig
from student_client.model_card import _data
from student_client.preparation import IGNORED
from tests.test_data import write_rows
from tests.toy_rows import all_rows, labelled, row_server, rows_run, unlabelled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.toy_server import ToyServer

__all__ = ["labelled", "row_server", "unlabelled"]


def test_rows_without_labels_come_after_those_of_train_and_decide_no_class(
    labelled: Path, unlabelled: Path
) -> None:
    run = rows_run(labelled, unlabelled)
    batch = all_rows(run)
    ids = batch.student["ids"].tolist()
    assert (sorted(ids[:20]), ids[20:]) == (list(range(20)), list(range(20, 32)))
    assert batch.labels.tolist() == [number % 2 for number in ids[:20]] + [IGNORED] * 12
    assert run.splits.classes == ("0", "1")
    assert run.splits.num_unlabelled == 12
    assert [len(part) for part in (run.splits.train, run.splits.valid)] == [32, 20]
    epoch = [batch.student["ids"].tolist() for batch in run.splits.train.shuffled(8, seed=0, epoch=0)]
    assert sorted(itertools.chain(*epoch)) == list(range(32))
    assert {number < 20 for number in epoch[0]} == {True, False}


def test_a_number_that_is_not_known_is_nan(labelled: Path, unlabelled: Path) -> None:
    batch = all_rows(rows_run(labelled, unlabelled, task="regression"))
    assert torch.equal(batch.labels[:20], batch.student["ids"][:20].float() % 2)
    assert batch.labels[20:].isnan().all()


@pytest.mark.parametrize("name", ["u.csv", "u.parquet", "u.jsonl", "on_disk"])
def test_a_column_of_labels_that_should_not_be_there_is_not_looked_at(tmp_path: Path, name: str) -> None:
    train = write_rows(tmp_path / "train.csv", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    extra = write_rows(tmp_path / name, [{"text": "c d", "label": "of another set"}])
    sources = dict.fromkeys(("train", "valid", "test"), str(train))
    config = DataConfig(**sources, unlabelled=str(extra), task="classification", text="text")
    batch = load_splits(config).train.example(3)
    assert batch.labels.tolist() == [0, 1, IGNORED]
    assert batch.teacher == ["a", "b", "c d"]


def test_words_without_tags_have_no_label_at_any_position(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", [{"words": ["a", "b"], "label": ["X", "Y"]}])
    extra = write_rows(tmp_path / "extra.jsonl", [{"words": ["c", "d", "e"]}])
    sources = dict.fromkeys(("train", "valid", "test"), str(train))
    config = DataConfig(**sources, unlabelled=str(extra), task="tokens", words="words")
    batch = load_splits(config).train.example(2)
    assert batch.labels.tolist() == [[0, 1, IGNORED], [IGNORED] * 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ids\n", r"data\.unlabelled: got no examples in .*u\.csv"),
        ("ids\n1\nx\n", r"u\.csv, row 2, column 'ids': got 'x', expected a number"),
        ("number\n1\n", r"u\.csv: got columns \['number'\], expected \['ids'\] too"),
    ],
)
def test_a_wrong_table_without_labels_is_told(
    labelled: Path, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "u.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        rows_run(labelled, path)


def test_a_stream_says_that_it_takes_labelled_rows_only() -> None:
    with pytest.raises(ValueError, match="unlabelled: got a source with stream, expected null"):
        DataConfig(
            valid="v", test="t", unlabelled="u", stream=True, task="classification", features={"ids": "int64"}
        )


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_tasks_loss_is_the_mean_over_labelled_rows(labelled: Path, unlabelled: Path, task: str) -> None:
    run = rows_run(labelled, unlabelled, task=task)
    run.objective.eval()
    batch = all_rows(run)
    outcome = run.objective(batch)
    logits, labels = outcome.logits[:20], batch.labels[:20]
    expected = (
        functional.cross_entropy(logits, labels)
        if task == "classification"
        else functional.mse_loss(logits[:, 0], labels)
    )
    torch.testing.assert_close(outcome.loss, expected)
    assert outcome.num_tokens == 20
    none = run.splits.train.select(torch.arange(20, 32))  # type: ignore[attr-defined]
    outcome = run.objective(none)
    torch.autograd.backward(outcome.loss)
    assert (outcome.loss.item(), outcome.num_tokens) == (0.0, 0)
    assert all(p.grad is None or p.grad.eq(0).all() for p in run.objective.parameters())


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_parts_and_workers_weigh_labels_not_rows(labelled: Path, unlabelled: Path, task: str) -> None:
    def gradients(**changes: Any) -> list[torch.Tensor]:
        run = rows_run(labelled, unlabelled, task=task, batch_size=32, **changes)
        next(run.train_epoch())
        return [p.grad for p in run.objective.parameters() if p.grad is not None]

    one = gradients()
    assert len(one) > 3
    in_parts = gradients(accumulate=5)
    worlds = [{"rank": rank, "world_size": 2, "sum_over_workers": lambda _: 20.0} for rank in range(2)]
    workers = [gradients(world=world) for world in worlds]
    for expected, parts, first, second in zip(one, in_parts, *workers, strict=True):
        torch.testing.assert_close(parts, expected)
        torch.testing.assert_close((first + second) / 2, expected)


def test_losses_of_parts_are_told_as_those_of_the_batch(labelled: Path, unlabelled: Path) -> None:
    told = []
    for accumulate in (1, 5, 8):
        run = rows_run(labelled, unlabelled, batch_size=32, accumulate=accumulate)
        told.append(next(iter(run.train_epoch())))
    assert told[0]["task"] == pytest.approx(told[0]["loss"])
    for parts in told[1:]:
        assert parts == pytest.approx(told[0], rel=1e-5)


def test_rows_without_labels_are_distilled_and_talked_about(
    labelled: Path, unlabelled: Path, row_server: ToyServer
) -> None:
    run = rows_run(labelled, unlabelled, row_server.address, losses={"kd": 1.0, "grounded": 1.0})
    run.objective.eval()
    batch = all_rows(run)
    outcome = run.objective(batch)
    assert run.objective.talk is not None
    assert isinstance(batch.teacher, dict)
    told = run.objective.talk.observe(batch.teacher, ["logits"])["logits"]
    torch.testing.assert_close(outcome.parts["kd"], losses.logits_distillation(outcome.logits, told))
    labelled_only = run.objective(run.splits.train.select(torch.arange(20)))  # type: ignore[attr-defined]
    torch.testing.assert_close(outcome.parts["grounded"], labelled_only.parts["grounded"])
    list(run.train_epoch())
    facts = run.finish()
    assert (facts["num_train"], facts["num_unlabelled"]) == (32, 12)
    card = _data(run.config, {"classes": run.splits.classes}, facts)
    assert "- unlabelled: `unlabelled.csv`\n- rows: 32 to learn from (12 of them without labels), 20" in card
    run.close()
