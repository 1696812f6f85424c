"""An exported student is alone: it gives the same predictions where nothing of ours can be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from preceptor.cli import build
from student_client.config import TrainConfig
from student_client.environment import environment
from student_client.export import ExportError, export_student, load_student
from student_client.plots import draw_losses, draw_waiting
from student_client.records import (
    CONFIG_FILE,
    EXAMPLE_FILE,
    METRICS_FILE,
    RESULT_FILE,
    STUDENT_FACTS_FILE,
    STUDENT_FILE,
    MetricsFile,
    read_metrics,
)
from student_client.run import StudentRun
from student_client.students import logits_of
from student_client.whole_files import write_json
from tests.tiny_models import save_tiny

if TYPE_CHECKING:
    from pathlib import Path

TEXT_STUDENT = {
    "factory": "student_client.students:TextStudent",
    "kwargs": {"dim": 16},
    "num_classes_kwarg": "num_classes",
}
DATA = {"vocab_size": 64}
# What is given to a fresh interpreter: our packages are as if they were not installed.
ALONE = """
import sys
for name in ("preceptor", "student_client", "services"):
    sys.modules[name] = None
import torch
from safetensors.torch import load_file, save_file
inputs = load_file(sys.argv[2])
"""
LOADERS = {
    "torch-export": (
        'student = torch.export.load(sys.argv[1] + "/model.pt2").module()\n'
        'by_name = "student(input_ids=input_ids" in open(sys.argv[1] + "/README.md").read()\n'
        "in_order = [inputs[name] for name in sys.argv[4].split()]\n"
        "logits = student(**inputs) if by_name else student(*in_order)\n"
    ),
    "onnx": (
        "import onnxruntime\n"
        'session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx")\n'
        "names = [each.name for each in session.get_inputs()]\n"
        "(logits,) = session.run(None, {name: inputs[name].numpy() for name in names})\n"
        "logits = torch.tensor(logits)\n"
    ),
    "safetensors": (
        "import transformers\n"
        "model = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])\n"
        "assert transformers.AutoTokenizer.from_pretrained(sys.argv[1]) is not None\n"
        "logits = model.eval()(**inputs).logits\n"
    ),
}


def ended_run(folder: Path, student: dict[str, Any]) -> Path:
    """Trains a student alone for an epoch and leaves what `train` leaves."""
    table = folder / "texts.csv"
    table.write_text("text,label\n" + "".join(f"{'ab'[n % 2]} c,{'xy'[n % 2]}\n" for n in range(40)))
    config = TrainConfig.model_validate(
        {
            "name": "ended",
            "output": folder,
            "epochs": 1,
            "student": student,
            "data": {"train": str(table), "task": "classification", "text": "text", "max_len": 8, **DATA},
        }
    )
    run = StudentRun(config)
    list(run.train_epoch())
    facts = run.finish()
    config.folder.mkdir()
    run.save_student(config.folder / STUDENT_FILE)
    save_file({n: t.contiguous() for n, t in run.example.student.items()}, config.folder / EXAMPLE_FILE)
    (config.folder / CONFIG_FILE).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    teacher = {"name": "big", "fingerprint": "abc123"}
    facts_of_student = {"classes": ["x", "y"], "task": "classification", "teacher": teacher}
    write_json(config.folder / STUDENT_FACTS_FILE, facts_of_student)
    write_json(config.folder / "environment.json", environment())
    write_json(config.folder / RESULT_FILE, facts)
    return config.folder


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    save_tiny(folder, "classifier")
    return folder


def more_inputs(run: Path) -> dict[str, torch.Tensor]:
    """Other rows than those of the example: five of them, and longer."""
    length = 6
    ids = torch.randint(1, 8, (5, length))
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    mask[3, 1:] = 0
    kinds = load_file(run / EXAMPLE_FILE)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask.to(kinds["attention_mask"].dtype),
        **({"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in kinds else {}),
    }


def assert_alone(run: Path, exported: Path, kind: str, scratch: Path) -> None:
    """Loads an export in a fresh interpreter and compares what it predicts."""
    inputs = more_inputs(run)
    save_file(inputs, scratch / "inputs.safetensors")
    code = ALONE + LOADERS[kind] + 'save_file({"logits": logits.detach()}, sys.argv[3])\n'
    files = [str(exported), str(scratch / "inputs.safetensors"), str(scratch / "logits.safetensors")]
    files.append(" ".join(load_file(run / EXAMPLE_FILE)))  # the order of the inputs
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *files],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=scratch,
    )
    assert done.returncode == 0, done.stderr
    _, student = load_student(run)
    with torch.no_grad():
        expected = logits_of(student(**inputs))
    got = load_file(scratch / "logits.safetensors")["logits"]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("student", ["ours", "pretrained"])
@pytest.mark.parametrize("kind", ["torch-export", "onnx"])
def test_a_students_program_needs_nothing_of_ours(
    tmp_path: Path, bert: Path, kind: Any, student: str
) -> None:
    run = ended_run(tmp_path, TEXT_STUDENT if student == "ours" else {"pretrained": str(bert)})
    written = export_student(run, tmp_path / "exported", kind=kind)
    assert written["format"] == kind
    assert_alone(run, tmp_path / "exported", kind, tmp_path)


@pytest.mark.parametrize(
    "lora", [None, {"r": 2, "target_modules": ["query", "value"]}], ids=["whole", "adapters"]
)
def test_a_pretrained_student_is_a_folder_of_hugging_face(
    tmp_path: Path, bert: Path, lora: dict[str, Any] | None
) -> None:
    run = ended_run(tmp_path, {"pretrained": str(bert), "lora": lora})
    export_student(run, tmp_path / "exported")
    names = load_file(tmp_path / "exported" / "model.safetensors").keys()
    assert not any(word in name for name in names for word in ("lora", "talk", "codec", "base_model"))
    settings = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert settings["id2label"] == {"0": "x", "1": "y"}
    assert_alone(run, tmp_path / "exported", "safetensors", tmp_path)


def test_the_card_says_what_the_student_is(tmp_path: Path) -> None:
    run = ended_run(tmp_path, TEXT_STUDENT)
    export_student(run, tmp_path / "exported", kind="safetensors")
    card = (tmp_path / "exported" / "README.md").read_text()
    matter = yaml.safe_load(card.split("---")[1])
    assert matter["metrics"] == ["accuracy"]
    for said in ("texts.csv", "big, `abc123`", "| `input_ids` | int64 | any length |", "x, y", "task 1"):
        assert said in card
    assert str(tmp_path) not in card  # where it was made is nobody's business
    assert "talk" not in load_file(tmp_path / "exported" / "model.safetensors")


def test_what_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    run = ended_run(tmp_path, TEXT_STUDENT)
    kept = tmp_path / "exported"
    kept.mkdir()
    (kept / "mine.txt").touch()
    with pytest.raises(ExportError, match="exists already"):
        export_student(run, kept)
    with pytest.raises(ExportError, match="is no export"):
        export_student(run, kept, force=True)
    assert (kept / "mine.txt").exists()
    (kept / "mine.txt").unlink()
    for _ in range(2):
        export_student(run, kept, kind="safetensors", force=True)
    assert (kept / "model.safetensors").exists()
    for above in (run, tmp_path):
        with pytest.raises(ExportError, match="holds the run itself"):
            export_student(run, above, force=True)
    assert (run / STUDENT_FILE).exists()


def test_the_command_says_what_it_wrote_and_what_is_wrong(tmp_path: Path) -> None:
    run = ended_run(tmp_path, TEXT_STUDENT)
    done = CliRunner().invoke(build(), ["export", str(run), "--format", "safetensors", "--json"])
    assert json.loads(done.stdout)["files"] == ["README.md", "config.json", "model.safetensors"]
    failed = CliRunner().invoke(build(), ["export", str(tmp_path)])
    assert failed.exit_code == 1
    assert "expected the folder of a run that has ended" in failed.output.replace("\n", " ")


def test_the_environment_has_versions_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "very-secret")
    found = environment()
    assert found["packages"]["torch"].startswith("2.")
    assert found["git"] is None or len(found["git"]["commit"]) == 40
    assert "very-secret" not in json.dumps(found)


def test_plots_are_drawn_of_any_number_of_lines(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    for lines in (0, 1, 3):
        for step in range(lines):
            where = {
                "step": step,
                "num_steps": 9,
                "epoch": 0,
                "losses": {"loss": 1.0 / (step + 1), "kd": 0.5},
            }
            parts = {"student_s": 0.5, "wire_s": 0.25, "queue_s": 0.25, "teacher_s": 0.0}
            times = {"step_times": {"step_s": 1.0, **parts}} if step else {}  # an earlier release's has none
            file.write({"kind": "steps", "examples_per_s": 9.0, "waiting_share": 0.5, **times, **where})
            file.write({"kind": "epoch", "valid": 0.5, "metric": "accuracy", "waiting_share": 0.5, **where})
        for draw in (draw_losses, draw_waiting):
            draw(read_metrics(tmp_path / METRICS_FILE), tmp_path / "plot.png")
            assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_texts_of_one_word_make_a_program_for_any_length(tmp_path: Path) -> None:
    run = ended_run(tmp_path, TEXT_STUDENT)
    save_file(
        {name: tensor[:, :1].contiguous() for name, tensor in load_file(run / EXAMPLE_FILE).items()},
        run / EXAMPLE_FILE,
    )
    export_student(run, tmp_path / "exported")
    program = torch.export.load(tmp_path / "exported" / "model.pt2").module()
    _, student = load_student(run)
    inputs = more_inputs(run)
    with torch.no_grad():
        torch.testing.assert_close(program(**inputs), student(**inputs), rtol=1e-5, atol=1e-5)
