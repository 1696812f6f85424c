"""The card that goes with an exported student: what it is, what of, and how to load it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from student_client.data_config import SOURCES
from student_client.preparation import SEQUENCES
from student_client.records import RESULT_FILE, STUDENT_FACTS_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from student_client.config import TrainConfig

__all__ = ["model_card"]

_TAGS = {"classification": "text-classification", "tokens": "token-classification"}
_ABOUT = (
    "A student that was fine-tuned with the help of a larger model and runs alone. Its weights' license is "
    "that of what it was made of."
)
_LOADING = {
    "torch-export": (
        'import torch\n\nstudent = torch.export.load("model.pt2").module()\nlogits = student({arguments})'
    ),
    "onnx": (
        "import onnxruntime\n\n"
        'student = onnxruntime.InferenceSession("model.onnx")\n'
        "(logits,) = student.run(None, {{{names}}})"
    ),
    "hugging-face": (
        "from transformers import AutoTokenizer, {model_class}\n\n"
        'student = {model_class}.from_pretrained(".")\n'
        "logits = student({arguments}).logits"
    ),
    "safetensors": (
        "from safetensors.torch import load_file\n\n"
        "# `student` is built by {factory}, see config.json\n"
        'student.load_state_dict(load_file("model.safetensors"))'
    ),
}

_KD_SOURCES = {"probe": "kd of a linear probe", "lessons": "kd of a conversation's answers"}


def model_card(
    run: Path, config: TrainConfig, student: nn.Module, example: Mapping[str, Tensor], kind: str
) -> str:
    """Returns the card as Markdown, with the front matter that Hugging Face reads.

    Args:
        run: the run's folder.
        config: of the run.
        student: as it is exported.
        example: rows of its inputs by name.
        kind: the format it is exported in.
    """
    result = json.loads((run / RESULT_FILE).read_text())
    facts = json.loads((run / STUDENT_FACTS_FILE).read_text())
    environment = json.loads((run / "environment.json").read_text())
    return "\n\n".join(
        (
            _front_matter(config, result),
            f"# {config.name}",
            _ABOUT,
            "## Data\n\n" + _data(config, facts, result),
            "## Inputs\n\n" + _inputs(example),
            "## Training\n\n" + _training(config, facts, environment, student),
            "## Metrics\n\n" + _metrics(result),
            "## Loading\n\n```python\n" + _loading(config, student, example, kind) + "\n```\n",
        )
    )


def _front_matter(config: TrainConfig, result: Mapping[str, Any]) -> str:
    matter: dict[str, Any] = {"tags": ["preceptor", "distillation"]}
    if config.student.pretrained is not None:
        matter["library_name"] = "transformers"
        if config.data.text or config.data.words:
            matter["pipeline_tag"] = _TAGS.get(config.data.task, "text-classification")
    matter["metrics"] = [result["metric"]]
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---"


def _data(config: TrainConfig, facts: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    data = config.data
    names = {name: source for name in SOURCES if (source := getattr(data, name))}
    lines = [f"- {name}: `{source.rpartition('/')[2]}`" for name, source in names.items()]
    without = result.get("num_unlabelled")
    unlabelled = f" ({without} of them without labels)" if without else ""
    lines += [
        f"- rows: {result['num_train']} to learn from{unlabelled}, {result['num_test']} to be tested on",
        f"- columns: {', '.join(f'`{column}`' for column in data.columns)}",
        f"- task: {data.task}, label `{data.label}`",
    ]
    if facts["classes"]:
        lines.append("- classes, in the order of the outputs: " + ", ".join(facts["classes"]))
    return "\n".join(lines)


def _inputs(example: Mapping[str, Tensor]) -> str:
    rows = ["| name | type | shape of one row |", "|---|---|---|"]
    for name, tensor in example.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = ["any length"] if name in SEQUENCES else [str(size) for size in tensor.shape[1:]]
        rows.append(f"| `{name}` | {dtype} | {' x '.join(shape) or 'a number'} |")
    return "\n".join(rows)


def _training(
    config: TrainConfig, facts: Mapping[str, Any], environment: Mapping[str, Any], student: nn.Module
) -> str:
    settings = config.losses.model_dump(exclude={"temperature", "kd_source"})
    if config.losses.kd_source != "head":
        settings[_KD_SOURCES[config.losses.kd_source]] = settings.pop("kd")
    weights = {name: value for name, value in settings.items() if value}
    teacher = facts["teacher"]
    packages = environment["packages"]
    lines = [
        f"- parameters: {sum(parameter.numel() for parameter in student.parameters()):,}",
        f"- student: `{config.student.pretrained or config.student.factory}`"
        + (", low-rank adapters, merged" if config.student.lora else ""),
        "- no teacher" if teacher is None else f"- teacher: {teacher['name']}, `{teacher['fingerprint']}`",
        f"- losses: {', '.join(f'{name} {value:g}' for name, value in weights.items())}",
        f"- {config.epochs} epochs of batches of {config.batch_size}, seed {config.seed}",
        f"- AdamW, learning rate {config.optimizer.lr:g}, schedule {config.optimizer.schedule}",
        f"- versions: {', '.join(f'{name} {packages[name]}' for name in packages)}",
    ]
    if environment["git"]:
        lines.append(f"- commit: `{environment['git']['commit']}`")
    return "\n".join(lines)


def _metrics(result: Mapping[str, Any]) -> str:
    return (
        f"| examples | {result['metric']} |\n|---|---|\n"
        f"| validation | {result['valid']:.4f} |\n| test | {result['test']:.4f} |\n\n"
        f"Weights of epoch {result['best_epoch']}."
    )


def _loading(config: TrainConfig, student: nn.Module, example: Mapping[str, Tensor], kind: str) -> str:
    if kind == "safetensors" and config.student.pretrained is not None:
        kind = "hugging-face"
    in_order = kind == "torch-export" and config.student.pretrained is not None
    return _LOADING[kind].format(
        arguments=", ".join(name if in_order else f"{name}={name}" for name in example),
        names=", ".join(f'"{name}": {name}' for name in example),
        model_class=type(student).__name__,
        factory=config.student.factory,
    )
