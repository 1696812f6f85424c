"""Writes a trained student alone: no trace of codec and teacher, nothing of this package needed to load it.

Students of Hugging Face become a folder of theirs, others a `torch.export` program, ONNX, or plain weights.
"""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

from student_client.config import TrainConfig
from student_client.model_card import model_card
from student_client.preparation import SEQUENCES
from student_client.records import (
    CONFIG_FILE,
    EXAMPLE_FILE,
    RESULT_FILE,
    STUDENT_FACTS_FILE,
    STUDENT_FILE,
)
from student_client.students import build_student, logits_of
from student_client.whole_files import put_folder, write_json, write_text, writing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ExportError", "ExportFormat", "export_student", "load_student"]

ExportFormat = Literal["auto", "safetensors", "torch-export", "onnx"]

CARD_FILE = "README.md"
_MIN_SIZE = 2  # one row, or one position, would make the program good for one only


class ExportError(RuntimeError):
    """A run can't be exported; the message says why."""


def load_student(run: Path) -> tuple[TrainConfig, nn.Module]:
    """Builds a run's trained student, in evaluation mode.

    Args:
        run: the run's folder.

    Raises:
        ExportError: the run has not ended, or its files are not as they should be.
    """
    if not (run / RESULT_FILE).exists():
        raise ExportError(f"{run}: got no {RESULT_FILE}, expected the folder of a run that has ended")
    try:
        config = TrainConfig.model_validate(yaml.safe_load((run / CONFIG_FILE).read_text()))
        student = build_student(
            config.student,
            num_classes=len(_facts(run)["classes"]),
            task=config.data.task,
            python_path=config.python_path,
        )
        load_model(student, run / STUDENT_FILE)
    except (OSError, ValueError, RuntimeError) as error:
        raise ExportError(f"{run}: {error}") from None
    return config, student.eval()


def export_student(
    run: Path, output: Path, *, kind: ExportFormat = "auto", force: bool = False
) -> dict[str, Any]:
    """Exports a run's student with a model card.

    Args:
        run: the run's folder.
        output: the folder to write; it appears when all is in it.
        kind: what is written; "auto": what fits the student.
        force: whether an `output` that is there is replaced; it has to be an earlier export, or empty.

    Returns:
        The folder, the format and the files.

    Raises:
        ExportError: there is something at `output`, or the student can't be exported like that.
        OSError: `output` can't be written; what was there still is.
    """
    if output.exists() and not force:
        raise ExportError(f"{output}: exists already; choose another folder or replace it with --force")
    if run.resolve().is_relative_to(output.resolve()):
        raise ExportError(f"{output}: holds the run itself, expected a folder that may be replaced")
    if output.exists() and not (output / CARD_FILE).is_file() and not _is_empty(output):
        raise ExportError(f"{output}: is no export (it has no {CARD_FILE}); it is not replaced")
    config, student = load_student(run)
    is_hugging_face = config.student.pretrained is not None
    if kind == "auto":
        kind = "safetensors" if is_hugging_face else "torch-export"
    if config.student.lora is not None:
        student = student.merge_and_unload()  # type: ignore[operator]  # a peft model
    example = load_file(run / EXAMPLE_FILE)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-")
    with temporary as name, writing(output):
        folder = Path(name) / "student"
        folder.mkdir()
        if kind == "safetensors":
            _write_weights(folder, student, config, _facts(run)["classes"])
        elif kind == "torch-export":
            _write_program(folder, student, example)
        else:
            _write_onnx(folder, student, example)
        card = model_card(run, config, student, example, kind)
        write_text(folder / CARD_FILE, card)
        for path in folder.rglob("*.safetensors"):  # which are made for one user alone
            path.chmod((folder / CARD_FILE).stat().st_mode)
        put_folder(folder, output)
    return {"folder": str(output), "format": kind, "files": sorted(path.name for path in output.iterdir())}


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _facts(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / STUDENT_FACTS_FILE).read_text())
    return facts


def _write_weights(folder: Path, student: nn.Module, config: TrainConfig, classes: list[str]) -> None:
    save_pretrained = getattr(student, "save_pretrained", None)
    if save_pretrained is None:
        state = {name: tensor.contiguous().clone() for name, tensor in student.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        write_json(
            folder / "config.json",
            {"factory": config.student.factory, "kwargs": config.student.kwargs, "num_classes": len(classes)},
        )
        return
    if classes:
        settings: Any = student.config
        settings.id2label = dict(enumerate(classes))
        settings.label2id = {name: number for number, name in enumerate(classes)}
    save_pretrained(folder)
    source = config.student.tokenizer or config.student.pretrained
    if source is not None and (config.data.text or config.data.words):
        from transformers import AutoTokenizer  # noqa: PLC0415 - heavy

        AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def _shapes(example: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns what may vary: rows, and positions of inputs that have them."""
    rows, positions = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    return {
        name: {0: rows, 1: positions} if name in SEQUENCES else {0: rows} for name, tensor in example.items()
    }


class _Logits(nn.Module):
    """A student with its outputs as one tensor and its inputs in order, by no name."""

    def __init__(self, student: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.student = student
        self._names = tuple(names)

    def forward(self, *values: Tensor) -> Tensor:
        return logits_of(self.student(**dict(zip(self._names, values, strict=True))))


def _traced(student: nn.Module, example: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """Returns a student's program.

    It takes inputs by name if the student returns a tensor; else, so that it needs no class of the outputs,
    in order.
    """
    inputs = {name: _grown(name, tensor) for name, tensor in example.items()}
    shapes: Any = _shapes(example)
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            if isinstance(student(**inputs), Tensor):
                return torch.export.export(student, (), inputs, dynamic_shapes=shapes, strict=False)
            return torch.export.export(
                _Logits(student, list(inputs)).eval(),
                tuple(inputs.values()),
                dynamic_shapes={"values": tuple(shapes.values())},
                strict=False,
            )
    except Exception as error:  # noqa: BLE001 - its errors have no common base
        first = str(error).strip().splitlines()[0]
        raise ExportError(f"torch.export can't follow the student: {type(error).__name__}: {first}") from None


def _grown(name: str, tensor: Tensor) -> Tensor:
    """Returns an example with at least two rows, and two positions if it has any."""
    for axis in (0, 1) if name in SEQUENCES else (0,):
        if tensor.shape[axis] < _MIN_SIZE:
            tensor = tensor.repeat_interleave(_MIN_SIZE, axis)
    return tensor


def _write_program(folder: Path, student: nn.Module, example: Mapping[str, Tensor]) -> None:
    content = io.BytesIO()  # where a file can't be written, torch ends the process
    torch.export.save(_traced(student, example), content)
    (folder / "model.pt2").write_bytes(content.getbuffer())


def _write_onnx(folder: Path, student: nn.Module, example: Mapping[str, Tensor]) -> None:
    program = _traced(student, example)
    try:
        with warnings.catch_warnings(action="ignore"):
            exported = torch.onnx.export(program, dynamo=True, verbose=False, input_names=list(example))
    except ImportError as error:
        raise ExportError(f"{error}; get what it needs with: pip install 'preceptor[onnx]'") from None
    except Exception as error:  # noqa: BLE001 - its errors have no common base
        first = str(error).strip().splitlines()[0]
        raise ExportError(f"ONNX can't express the student: {type(error).__name__}: {first}") from None
    if exported is None:
        raise ExportError("ONNX: got no program, expected one")
    exported.save(str(folder / "model.onnx"))
