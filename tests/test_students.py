"""Any student: of Hugging Face, with adapters, frozen parts, checkpointing; any shape of inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from student_client.config import TrainConfig
from student_client.data import Batch
from student_client.preparation import IGNORED
from student_client.run import StudentRun
from student_client.student_config import StudentConfig
from student_client.students import TextStudent, build_student, logits_of
from student_client.taps import Taps
from tests.tiny_bert import folder, teacher

if TYPE_CHECKING:
    from pathlib import Path

    from tests.toy_server import ToyServer

__all__ = ["folder", "teacher"]

WORDS = ("a", "b", "c", "d", "teacher", "reads")
BERT = {"lower": "bert.encoder.layer.0", "upper": "bert.encoder.layer.2", "mask": "attention_mask"}
LOSSES = {"task": 1.0, "interact": 0.5, "grounded": 0.5, "message": 0.2, "state": 0.1}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Texts of one word each, which is the label; `words` and `tags` say it word by word."""
    import json  # noqa: PLC0415

    path = tmp_path / "texts.jsonl"
    rows = []
    for number in range(40):
        words = [WORDS[number % 4]] * (2 + number % 3)
        rows.append(
            {
                "text": " ".join(words),
                "label": words[0],
                "score": number / 10,
                "more": "teacher reads " + words[0],
                "words": words,
                "tags": [word.upper() for word in words],
            }
        )
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run_of(texts: Path, teacher: ToyServer, student: dict[str, Any], **changes: Any) -> StudentRun:
    data = {"train": str(texts), "task": "classification", "text": "text", "max_len": 16}
    content: dict[str, Any] = {
        "name": "any",
        "output": texts.parent,
        "epochs": 3,
        "batch_size": 8,
        "student": student,
        "teacher": {"address": teacher.address},
        "losses": LOSSES,
        "talk": {"codec": {"message_dim": 4, "message_len": 2}, "reading": "beside"},
        "optimizer": {"lr": 0.02},
        **changes,
        "data": {**data, **changes.get("data", {})},
    }
    return StudentRun(TrainConfig.model_validate(content))


def trains(run: StudentRun, *, by: float | None = None) -> None:
    """Trains; what is to be trained moves, nothing else does, and the task's loss falls by a factor."""
    before = {name: p.detach().clone() for name, p in run.objective.named_parameters()}
    losses = []
    while run.epoch < run.config.epochs:
        losses += [step["task"] for step in run.train_epoch()]
    assert by is None or sum(losses[-5:]) < by * sum(losses[:5])
    for name, parameter in run.objective.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
    moved = [n for n, p in run.objective.named_parameters() if not torch.equal(p, before[n])]
    assert any(name.startswith("student.") for name in moved)
    assert any("teacher_codec" in name for name in moved)
    assert run.finish()["num_test"] > 0
    run.close()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"frozen": ["bert.embeddings", "*.layer.1.*"]},
        {"lora": {"r": 2, "target_modules": ["query", "value"]}},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "lora": {"r": 2, "target_modules": ["query", "value"]}},
        {"from_scratch": True},
    ],
    ids=["whole", "frozen", "adapters", "checkpointing", "both", "from scratch"],
)
def test_a_pretrained_student_learns(
    texts: Path, teacher: ToyServer, folder: Path, changes: dict[str, Any]
) -> None:
    run = run_of(texts, teacher, {"pretrained": str(folder), **BERT, **changes})
    trained = [name for name, p in run.objective.student.named_parameters() if p.requires_grad]
    if "lora" in changes:
        assert all("lora_" in name or "modules_to_save" in name for name in trained)
    if "frozen" in changes:
        assert not any("embeddings" in name or "layer.1" in name for name in trained)
    trains(run)


def test_checkpointing_changes_no_gradient(texts: Path, teacher: ToyServer, folder: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        run = run_of(
            texts, teacher, {"pretrained": str(folder), **BERT, "gradient_checkpointing": checkpointing}
        )
        for module in run.objective.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        torch.autograd.backward(run.objective.train()(run.splits.train.example(8)).loss)
        gradients.append({name: p.grad for name, p in run.objective.named_parameters()})
        run.close()
    for name, expected in gradients[0].items():
        assert (expected is None) == (gradients[1][name] is None), name
        if expected is not None:
            torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("student", ["pretrained", "hashed"])
def test_a_token_level_student_learns(texts: Path, teacher: ToyServer, folder: Path, student: str) -> None:
    small = {
        "factory": "student_client.students:TextStudent",
        "kwargs": {"dim": 16, "vocab_size": 64, "per_token": True, "dropout": 0.0},
        "num_classes_kwarg": "num_classes",
        "lower": "blocks.0",
        "upper": "blocks.1",
        "mask": "attention_mask",
    }
    config = {"pretrained": str(folder), **BERT} if student == "pretrained" else small
    data = {"task": "tokens", "text": None, "words": "words", "label": "tags", "vocab_size": 64}
    losses = {"task": 1.0, "interact": 0.5, "grounded": 0.5}
    run = run_of(texts, teacher, config, data=data, losses=losses, epochs=10)
    assert run.splits.classes == ("A", "B", "C", "D")
    assert run.splits.train.example().labels.ndim == 2
    trains(run, by=0.9 if student == "hashed" else None)


def test_a_student_reads_a_pair_and_the_teacher_another_text(
    texts: Path, teacher: ToyServer, folder: Path
) -> None:
    data = {"text_pair": "more", "teacher_text": "more"}
    run = run_of(texts, teacher, {"pretrained": str(folder), **BERT}, data=data)
    assert next(iter(run.splits.train.example(1).teacher)).startswith("teacher reads")
    trains(run)


class PairedStudent(nn.Module):
    """Hashed words and a number to [B, C]; its states have no positions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(64, 8)
        self.lower = nn.Linear(9, 8)
        self.upper = nn.Linear(8, 8)
        self.head = nn.Linear(8, num_classes)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, score: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        valid = attention_mask[..., None]
        pooled = (self.words(input_ids) * valid).sum(1) / valid.sum(1)
        states = torch.tanh(self.lower(torch.cat([pooled, score[:, None]], -1)))
        return self.head(torch.tanh(self.upper(states))), None


def test_a_pooled_student_of_several_inputs_learns(texts: Path, teacher: ToyServer) -> None:
    student = {
        "factory": "tests.test_students:PairedStudent",
        "num_classes_kwarg": "num_classes",
        "lower": "lower",
        "upper": "upper",
    }
    data = {"features": {"score": "float32"}, "vocab_size": 64}
    trains(run_of(texts, teacher, student, data=data, epochs=10), by=0.9)


def test_outputs_are_found_in_what_models_return() -> None:
    from transformers.modeling_outputs import SequenceClassifierOutput  # noqa: PLC0415

    logits = torch.zeros(2, 3)
    assert logits_of(logits) is logits
    assert logits_of((logits, None)) is logits
    assert logits_of(SequenceClassifierOutput(logits=logits)) is logits
    with pytest.raises(TypeError, match="got a dict"):
        logits_of({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": ["bert.embedding"]}, "no parameter's name; did you mean bert.embeddings"),
        ({"auto_class": "NoSuchClass"}, "auto_class"),
        ({"lora": {"target_modules": ["nothing"]}}, r"student\.lora"),
        ({"pretrained": "/no/such/folder"}, r"student\.pretrained"),
    ],
)
def test_what_does_not_fit_the_model_is_told(folder: Path, changes: dict[str, Any], message: str) -> None:
    config = StudentConfig.model_validate({"pretrained": str(folder), **changes})
    with pytest.raises(ValueError, match=message):
        build_student(config, num_classes=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "factory, pretrained"),
        ({"factory": "a:b", "pretrained": "c"}, "factory, pretrained"),
        ({"pretrained": "c", "kwargs": {"x": 1}}, "kwargs"),
        ({"factory": "a:b", "from_scratch": True}, "from_scratch"),
    ],
)
def test_a_student_has_one_source(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudentConfig.model_validate(content)


def test_a_frozen_head_stays_frozen_beside_adapters(folder: Path) -> None:
    lora = {"r": 2, "target_modules": ["query"]}
    config = StudentConfig.model_validate({"pretrained": str(folder), "lora": lora, "frozen": ["classifier"]})
    student = build_student(config, num_classes=2)
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_a_model_is_tapped_where_it_returns_an_output_of_transformers(folder: Path) -> None:
    model = build_student(StudentConfig(pretrained=str(folder)), num_classes=2).eval()
    taps = Taps(model, {"whole": "bert.encoder", "last": "bert.encoder.layer.2"})
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        model(input_ids=ids)
        whole = taps["whole"]
        assert torch.equal(whole, taps["last"])
        with taps.replaced("whole", torch.zeros_like(whole)):
            silenced = model(input_ids=ids).logits
            assert torch.equal(silenced, model(input_ids=ids.flip(1)).logits)
        assert not torch.equal(silenced, model(input_ids=ids).logits)


def test_a_mask_may_be_one_of_integers_as_tokenizers_give_it() -> None:
    student = TextStudent(num_classes=2, vocab_size=20, dim=8, num_layers=1, max_len=4).eval()
    ids, mask = torch.tensor([[3, 4, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.equal(student(ids, mask), student(ids, mask.bool()))


def test_only_models_that_can_are_checkpointed() -> None:
    config = StudentConfig(
        factory="tests.toy_student:ToyStudent", num_classes_kwarg="num_classes", gradient_checkpointing=True
    )
    with pytest.raises(ValueError, match=r"student\.gradient_checkpointing: got true for a ToyStudent"):
        build_student(config, num_classes=2)


def test_rows_without_labels_teach_nothing_and_break_nothing(
    texts: Path, teacher: ToyServer, folder: Path
) -> None:
    data = {"task": "tokens", "text": None, "words": "words", "label": "tags", "vocab_size": 64}
    run = run_of(texts, teacher, {"pretrained": str(folder), **BERT}, data=data, losses={"task": 1.0})
    batch = run.splits.train.example(4)
    unlabelled = Batch(batch.student, batch.teacher, torch.full_like(batch.labels, IGNORED))
    outcome = run.objective.train()(unlabelled)
    torch.autograd.backward(outcome.loss)
    assert float(outcome.loss.detach()) == 0
    gradients = [p.grad for p in run.objective.student.parameters() if p.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)
    run.close()


def test_a_student_that_can_not_read_its_inputs_is_told_before_anything_starts(
    texts: Path, teacher: ToyServer
) -> None:
    narrow = {
        "factory": "student_client.students:TextStudent",
        "kwargs": {"dim": 16, "vocab_size": 4},
        "num_classes_kwarg": "num_classes",
        "lower": "blocks.0",
        "upper": "blocks.1",
        "mask": "attention_mask",
    }
    with pytest.raises(ValueError, match="student: its forward pass failed on the first examples"):
        run_of(texts, teacher, narrow)
