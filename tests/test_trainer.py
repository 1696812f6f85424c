"""TalkingTrainer: transformers' Trainer with a teacher, and nothing of the teacher left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets
import pytest
import torch
import transformers
from safetensors.torch import load_file

from student_client.config import LossWeights, TalkConfig, TrainConfig
from student_client.data import Batch
from student_client.objective import build_objective
from student_client.trainer import TalkingArguments, TalkingTrainer
from tests.tiny_bert import folder, teacher
from tests.tiny_models import SIZES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.toy_server import ToyServer

__all__ = ["folder", "teacher"]

TEXTS = ["a teacher reads", "b", "a b c d", "d c b a d", "c c", "teacher a", "reads b b", "d"]
LOWER, UPPER = "bert.encoder.layer.0", "bert.encoder.layer.1"
WEIGHTS = LossWeights(interact=1.0, message=0.3, state=0.2, grounded=0.5)
TALK = TalkConfig.model_validate({"codec": {"message_dim": 4, "message_len": 2}, "reading": "beside"})


@pytest.fixture
def model() -> transformers.BertForSequenceClassification:
    return fresh_model()


def fresh_model() -> transformers.BertForSequenceClassification:
    """The same random weights each time, without dropout."""
    torch.manual_seed(1)
    settings = transformers.BertConfig(
        **SIZES, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return transformers.BertForSequenceClassification(settings)


def rows_of(folder: Path) -> datasets.Dataset:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(TEXTS, padding=True)
    columns = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    return datasets.Dataset.from_dict({"text": TEXTS, "labels": [n % 2 for n in range(8)], **columns})


def trainer_of(
    model: Any, folder: Path, address: str, out: Path, *, weights: LossWeights = WEIGHTS, **args: Any
) -> TalkingTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **args,
    }
    rows = rows_of(folder)
    return TalkingTrainer(
        model=model,
        args=transformers.TrainingArguments(**settings),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda seen: {
            "accuracy": float((seen.predictions.argmax(-1) == seen.label_ids).mean())
        },
        teacher=address,
        talking=TalkingArguments(lower=LOWER, upper=UPPER, losses=weights, talk=TALK),
    )


def accuracy_of(seen: transformers.EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((seen.predictions.argmax(-1) == seen.label_ids).mean())}


def logged(trainer: TalkingTrainer, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


def test_it_trains_model_and_codec_and_leaves_the_model_alone(
    model: Any, folder: Path, teacher: ToyServer, tmp_path: Path
) -> None:
    names = set(dict(model.named_parameters()))
    trainer = trainer_of(model, folder, teacher.address, tmp_path, max_steps=12)
    before = {name: p.detach().clone() for name, p in trainer.talking.named_parameters()}
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[-1] < losses[0]
    assert [name for name, p in trainer.talking.named_parameters() if torch.equal(p, before[name])] == []
    assert set(dict(trainer.model.named_parameters())) == names
    assert logged(trainer, "loss_interact")
    parts = [logged(trainer, name) for name in ("student_s", "wire_s", "queue_s", "teacher_s")]
    assert [sum(each) for each in zip(*parts, strict=True)] == pytest.approx(logged(trainer, "step_s"))
    assert all(0 < share < 1 for share in logged(trainer, "waiting_share"))
    assert logged(trainer, "loss_grounded")
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    assert trainer.predict(rows_of(folder)).predictions.shape == (8, 2)


def test_its_loss_and_gradients_are_those_of_the_other_ways(
    model: Any, folder: Path, teacher: ToyServer, tmp_path: Path
) -> None:
    trainer = trainer_of(model, folder, teacher.address, tmp_path, max_steps=1, per_device_train_batch_size=8)
    config = TrainConfig.model_validate(
        {
            "name": "same",
            "student": {"factory": "a:b", "lower": LOWER, "upper": UPPER, "mask": "attention_mask"},
            "data": {"task": "classification", "text": "text"},
            "teacher": {"address": teacher.address},
            "losses": WEIGHTS.model_dump(),
            "talk": TALK.model_dump(),
        }
    )
    rows = rows_of(folder)
    student = {name: torch.tensor(rows[name][:]) for name in ("input_ids", "attention_mask")}
    batch = Batch(student, TEXTS, torch.tensor(rows["labels"][:]))
    import copy  # noqa: PLC0415

    objective = build_objective(config, copy.deepcopy(model), batch)
    assert objective.talking is not None
    objective.talking.load_state_dict(trainer.talking.state_dict())
    outcome = objective.train()(batch)
    trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(float(outcome.loss.detach()), rel=1e-4)
    assert logged(trainer, "loss_state")[0] == pytest.approx(float(outcome.parts["state"]), rel=1e-5)
    objective.talking.talk.close()


@pytest.mark.parametrize(
    "args",
    [
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"bf16": True},
        {"activation_checkpointing": True},
    ],
    ids=["accumulation", "autocast", "checkpointing"],
)
def test_the_trainers_own_switches_work(
    model: Any, folder: Path, teacher: ToyServer, tmp_path: Path, args: dict[str, Any]
) -> None:
    trainer = trainer_of(model, folder, teacher.address, tmp_path, max_steps=16, **args)
    before = {name: p.detach().clone() for name, p in trainer.talking.named_parameters()}
    trainer.train()
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    assert not any(torch.equal(p, before[name]) for name, p in trainer.talking.named_parameters())


def test_accumulation_and_checkpointing_change_nothing(
    folder: Path, teacher: ToyServer, tmp_path: Path
) -> None:
    seen = []
    for args in (
        {},
        {"activation_checkpointing": True},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    ):
        torch.manual_seed(1)
        settings = transformers.BertConfig(
            **SIZES, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        model = transformers.BertForSequenceClassification(settings)
        torch.manual_seed(2)
        # Without momentum a step is the gradient: what was scaled wrongly would show.
        trainer = trainer_of(
            model,
            folder,
            teacher.address,
            tmp_path,
            max_steps=1,
            optim="sgd",
            train_sampling_strategy="sequential",
            **args,
        )
        trainer.train()
        trained = (*trainer.talking.parameters(), *trainer.model.parameters())
        seen.append(torch.cat([p.detach().flatten() for p in trained]))
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen[2], seen[0], rtol=1e-3, atol=1e-5)


def test_a_checkpoint_holds_the_student_alone_and_a_resumed_run_goes_on(
    model: Any, folder: Path, teacher: ToyServer, tmp_path: Path
) -> None:
    trainer = trainer_of(
        model, folder, teacher.address, tmp_path, save_strategy="steps", save_steps=2, max_steps=4
    )
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert not any("talk" in name for name in saved)
    assert (tmp_path / "checkpoint-2" / "talking.safetensors").exists()
    transformers.BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    expected = {name: p.detach().clone() for name, p in trainer.talking.named_parameters()}
    again = trainer_of(
        transformers.BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2"),
        folder,
        teacher.address,
        tmp_path,
        save_strategy="steps",
        save_steps=2,
        max_steps=4,
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, parameter in again.talking.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-3, atol=1e-5)
    again.save_model(str(tmp_path / "final"))
    assert load_file(tmp_path / "final" / "model.safetensors").keys() == model.state_dict().keys()


def test_a_model_with_adapters_learns(model: Any, folder: Path, teacher: ToyServer, tmp_path: Path) -> None:
    import peft  # noqa: PLC0415

    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    )
    trainer = trainer_of(adapted, folder, teacher.address, tmp_path, max_steps=12, learning_rate=1e-2)
    trainer.train()
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    moved = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert moved
    assert all("lora_" in name or "modules_to_save" in name for name in moved)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
            "use_reentrant true",
        ),
        ({"label_smoothing_factor": 0.1}, r"losses\.grounded"),
    ],
)
def test_what_would_not_work_is_refused(
    model: Any, folder: Path, teacher: ToyServer, tmp_path: Path, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(model, folder, teacher.address, tmp_path, **args)


def test_a_data_set_without_the_teachers_column_is_told(
    model: Any, folder: Path, teacher: ToyServer, tmp_path: Path
) -> None:
    trainer = trainer_of(model, folder, teacher.address, tmp_path)
    trainer.train_dataset = rows_of(folder).remove_columns("text")
    with pytest.raises(ValueError, match="teacher_inputs: got 'text', which the data set lacks"):
        trainer.train()
    trainer.eval_dataset = trainer.train_dataset
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1  # the student is alone there


def test_an_optimizer_that_would_leave_the_codec_alone_is_refused(
    model: Any, folder: Path, teacher: ToyServer, tmp_path: Path
) -> None:
    trainer = trainer_of(model, folder, teacher.address, tmp_path)
    trainer.optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="optimizers: got an optimizer without the codec's parameters"):
        trainer.train()


def test_the_best_checkpoint_is_loaded_and_losses_are_reported_as_ever(
    model: Any, folder: Path, teacher: ToyServer, tmp_path: Path
) -> None:
    every: dict[str, Any] = dict.fromkeys(("eval_strategy", "save_strategy"), "steps") | {
        "eval_steps": 1,
        "save_steps": 1,
    }
    trainer = trainer_of(
        model,
        folder,
        teacher.address,
        tmp_path,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        report_to=["tensorboard"],
        **every,
    )
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert all(torch.equal(trainer.model.state_dict()[name], best[name]) for name in best)
    (events,) = (path for path in tmp_path.rglob("events.out.tfevents*") if path.stat().st_size)
    content = events.read_bytes()
    assert all(name in content for name in (b"train/loss_interact", b"eval/accuracy"))
