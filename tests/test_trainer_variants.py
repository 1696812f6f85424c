"""Variants of talking and of distillation under TalkingTrainer, and those that it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from student_client.config import LossWeights, TalkConfig
from student_client.trainer import TalkingArguments, TalkingTrainer
from tests.test_trainer import LOWER, UPPER, fresh_model, logged, rows_of
from tests.tiny_bert import folder, teacher

if TYPE_CHECKING:
    from pathlib import Path

    from tests.toy_server import ToyServer

__all__ = ["folder", "teacher"]

CODEC = {"message_dim": 4, "message_len": 2}


def _trainer(
    folder: Path, server: ToyServer, out: Path, losses: dict[str, Any], talk: dict[str, Any]
) -> TalkingTrainer:
    settings = transformers.TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=8,
        max_steps=3,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    talking = TalkingArguments(
        lower=LOWER,
        upper=UPPER,
        losses=LossWeights(**losses),
        talk=TalkConfig.model_validate({"codec": CODEC, **talk}),
    )
    return TalkingTrainer(
        model=fresh_model(),
        args=settings,
        train_dataset=rows_of(folder),
        teacher=server.address,
        talking=talking,
    )


@pytest.mark.parametrize(
    ("losses", "talk"),
    [
        ({"relation": 1.0, "attention": 1.0}, {}),
        ({"grounded": 1.0, "interact": 0.5, "message": 0.5}, {"gate": True, "message_loss": "contrastive"}),
        ({"grounded": 1.0, "interact": 0.5}, {"control": "shuffled", "reading": "beside"}),
        ({"grounded": 1.0, "interact": 0.5}, {"control": "no_teacher"}),
    ],
)
def test_it_trains_by_every_variant(
    folder: Path, teacher: ToyServer, tmp_path: Path, losses: dict[str, Any], talk: dict[str, Any]
) -> None:
    trainer = _trainer(folder, teacher, tmp_path, losses, talk)
    before = {name: p.detach().clone() for name, p in trainer.talking.named_parameters() if p.requires_grad}
    assert ("gate" in before) == ("gate" in talk)
    trainer.train()
    after = dict(trainer.talking.named_parameters())
    assert [name for name, value in before.items() if torch.equal(after[name], value)] == []
    for name in losses:
        values = logged(trainer, f"loss_{name}")
        assert len(values) == 3
        assert all(value > 0 for value in values)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (({"kd": 1.0, "kd_source": "probe"}, {}), r"losses\.kd_source: got probe, expected head"),
        (
            ({"grounded": 1.0}, {"swap_probability": 0.5, "reading": "replace"}),
            r"talk\.swap_probability: .*expected 0",
        ),
        (({"state": 1.0}, {"control": "no_teacher"}), r"talk\.control: got no_teacher with losses\.message"),
    ],
)
def test_what_it_can_not_do_is_told(
    folder: Path, teacher: ToyServer, tmp_path: Path, what: tuple[Any, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _trainer(folder, teacher, tmp_path, *what)
