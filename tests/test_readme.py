"""What the documents promise: the README's lines run, the configs they name are valid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pytest
import torch
import transformers
import yaml
from torch.nn import functional

import student_client
from services.teacher.config import ServiceConfig
from services.teacher.families import load_teacher
from services.teacher.metrics import METRICS
from student_client.config import TrainConfig
from student_client.fleet_config import FleetConfig
from student_client.students import TextStudent
from tests.tiny_models import save_tiny
from tests.toy_server import ToyServer

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def minilm() -> Iterator[ToyServer]:
    config = ServiceConfig.load(ROOT / "examples/text/teacher.yaml")
    server = ToyServer(load_teacher(config, torch.device("cpu"), torch.float32), config)
    server.start()
    yield server
    server.close()


def example_batches() -> list[tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]]:
    texts = ["where is my card", "I lost my card", "how do I pay", "can I pay abroad"]
    ids = torch.randint(1, 100, (4, 6))
    return [(texts, ids, torch.ones(4, 6, dtype=torch.bool), torch.tensor([0, 0, 1, 1]))] * 3


@pytest.mark.weights
def test_the_readmes_lines_run_and_move_both_sides(minilm: ToyServer) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "preceptor://127.0.0.1:41500" in code
    names = {name: getattr(student_client, name) for name in ("Taps", "TeacherTalk", "losses")}
    scope = {**names, "TextStudent": TextStudent, "torch": torch, "functional": functional}
    scope["batches"] = example_batches()
    exec(code.replace("127.0.0.1:41500", minilm.address), scope)  # noqa: S102 - our own README
    gradients = [p.grad for p in scope["talk"].parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    scope["talk"].close()


@pytest.mark.weights
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
def test_the_lines_with_transformers_run(minilm: ToyServer, tmp_path: Path) -> None:
    page = (ROOT / "docs/train.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 20
    save_tiny(tmp_path, "classifier")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = ["a teacher reads", "b c d", "d", "a b"]
    rows = {"text": texts, "label": [0, 1, 2, 0], **tokenizer(texts)}
    scope: dict[str, Any] = {
        "model": transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path),
        "tokenizer": tokenizer,
        "dataset": datasets.Dataset.from_dict(rows),
    }
    code = code.replace("127.0.0.1:41500", minilm.address).replace('"out"', repr(str(tmp_path / "out")))
    exec(code, scope)  # noqa: S102 - our own page
    assert scope["trainer"].state.global_step == 3
    assert scope["trainer"].state.log_history


def test_the_yaml_of_the_training_page_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/train.md").read_text(), re.DOTALL)
    assert len(text.splitlines()) <= 20
    path = tmp_path / "run.yaml"
    path.write_text(text)
    config = TrainConfig.load(path)
    assert config.student.lora is not None
    assert config.worker_range == (2, 2)
    assert config.student.pretrained == str(tmp_path / "models" / "tiny-bert")


def test_the_fleets_of_the_documents_are_valid() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/fleet.md").read_text(), re.DOTALL)
    page = FleetConfig.of(yaml.safe_load(text), ROOT)
    assert [run.name for run in page.runs] == ["support", "sales"]
    assert page.runs[1].losses.kd == 0.5
    example = FleetConfig.load(ROOT / "examples/text/fleet.yaml")
    assert [run.losses.kd_source for run in example.runs] == ["lessons", "lessons", "head"]
    assert example.runs[1].student.kwargs["dim"] == 96


def test_the_examples_of_text_students_are_the_recipe_and_a_conversation_at_every_step() -> None:
    recipe, talk = (TrainConfig.load(ROOT / f"examples/text/{name}.yaml") for name in ("intent", "talk"))
    assert recipe.losses.kd_source == "lessons"
    assert not recipe.losses.talks
    assert talk.losses.talks
    assert talk.student == recipe.student


def test_the_serve_config_fits_ray_and_our_own_config() -> None:
    from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415

    content = yaml.safe_load((ROOT / "deploy/serve/teacher.yaml").read_text())
    schema = ServeDeploySchema.model_validate(content)
    (application,) = schema.applications
    assert application.import_path == "services.teacher.app:build_app"
    assert ServiceConfig.model_validate(content["applications"][0]["args"]).name == "minilm"


def test_the_yaml_of_the_serving_page_is_valid() -> None:
    texts = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/serve.md").read_text(), re.DOTALL)
    whole, tls = (ServiceConfig.model_validate(yaml.safe_load(text)) for text in texts[:2])
    assert whole.model.family == "module"
    assert tls.tls is not None
    assert tls.tls.client_ca is not None
    (signals,) = (yaml.safe_load(text) for text in texts[2:])
    assert ServiceConfig.model_validate({"auth": "none", **signals}).signals.logs == "json"


def test_the_metrics_of_the_serving_page_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| (`preceptor_.*)$", (ROOT / "docs/serve.md").read_text(), re.MULTILINE)
    labels_of = {
        name: {"teacher", *re.findall(r"`(\w+)`", row.split(" | ")[1])}
        for row in rows
        for name in re.findall(r"`(preceptor_\w+)`", row)
    }
    assert labels_of == {metric.name: set(metric.tag_keys) for metric in METRICS}


def test_the_environment_of_the_serving_page_is_what_we_set() -> None:
    from services.teacher.environment import serve_environment  # noqa: PLC0415

    page = (ROOT / "docs/serve.md").read_text()
    for name, value in serve_environment(ServiceConfig(auth="none")).items():
        assert f"{name}={value.removesuffix('.0')}" in page


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "deploy/README.md"]:
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
