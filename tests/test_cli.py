"""The `preceptor` command, in process; `test_serve_cli.py` runs it for real."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from rich.text import Text
from typer.testing import CliRunner

from preceptor.cli import build
from services.teacher.cli import _where
from services.teacher.config import ServiceConfig
from services.teacher.environment import serve_environment
from services.teacher.local import address_of
from student_client.cli import _print_result
from student_client.train import TrainResult

if TYPE_CHECKING:
    from tests.toy_server import ToyServer

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "examples/text/intent.yaml")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(build(), list(arguments), env={"COLUMNS": "200"})


def test_a_shell_gets_what_a_ray_needs(tmp_path: Path) -> None:
    path = tmp_path / "teacher.yaml"
    path.write_text("auth: none\nhost: 127.0.0.1\n")
    expected = serve_environment(ServiceConfig(auth="none", port=4000))
    printed = run("environment", str(path), "--port", "4000")
    script = f"{printed.stdout}\n{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout).items() >= expected.items()
    as_json = run("environment", str(path), "--port", "4000", "--json")
    assert json.loads(as_json.stdout) == expected
    path.write_text("ports: 1\n")
    assert run("environment", str(path)).exit_code == 2


def test_what_came_of_a_run_is_told_fact_by_fact(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"valid": 0.5, "lessons": {"valid": 0.25, "costs": {"num_turns": 3}}, "step_times": {}}
    _print_result(TrainResult("toy", Path("out/toy"), facts), as_json=False)
    told = capsys.readouterr().err
    for name, value in (("lessons.valid", "0.2500"), ("lessons.costs.num_turns", "3")):
        assert re.search(rf"{re.escape(name)} +│ {value} ", told)


def test_help_teaches_each_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(command in result.output for command in ("serve", "describe", "status", "train"))
    for command in ("serve", "environment", "describe", "train"):
        assert run(command, "--help").exit_code == 0


def test_the_version_is_printed() -> None:
    assert run("--version").output.strip() == "0.1.0"


def test_describe_prints_json_for_scripts(server: ToyServer) -> None:
    result = run("describe", server.address, "--json")
    facts = json.loads(result.stdout)
    assert facts["teacher"]["family"] == "module"
    assert facts["limits"]["max_turns_in_flight"] == 32


def test_describe_prints_tables_for_people(server: ToyServer) -> None:
    result = run("describe", server.address)
    assert result.exit_code == 0
    assert "fingerprint" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["describe", "nonsense"], 2, "expected preceptor://"),
        (["describe", "127.0.0.1:1"], 4, "no replica of"),
        (["serve", "/missing.yaml"], 2, "can't be read"),
        (["train", "/missing.yaml"], 2, "can't be read"),
        (["train", CONFIG, "--set", "epochs"], 2, "expected NAME=VALUE"),
        (["train", CONFIG, "--set", "epochs=0"], 2, "epochs"),
        (
            ["train", CONFIG, "--set", "seed=1", "--set", "data.txet=x"],
            2,
            "with --set data.txet: data.txet: ",
        ),
        (["train", CONFIG, "--teacher", "foo://x"], 2, "intent.yaml with --teacher: teacher"),
        (
            ["train", CONFIG, "--set", "talk.compression=int4"],
            2,
            "talk.compression: compression: got 'int4'",
        ),
        (["train", CONFIG, "/missing.csv", "--set", "output=/tmp"], 2, "can't be read"),
    ],
)
def test_mistakes_have_their_exit_code_and_reason(
    arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [("port: [", "not YAML"), ("port: 0", "port"), ("colour: red", "colour"), ("host: a/b", "host")],
)
def test_a_wrong_service_config_names_the_field(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "teacher.yaml"
    path.write_text(content)
    result = run("serve", str(path))
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("host", "scheme", "told"),
    [
        ("127.0.0.1", "preceptor", "is ready at preceptor://127.0.0.1:41500"),
        ("0.0.0.0", "preceptor", "all addresses, port 41500; students say preceptor://NAME:41500"),  # noqa: S104
        ("::", "preceptors", "students say preceptors://NAME:41500, NAME as in the certificate"),
    ],
)
def test_students_are_told_an_address_that_they_can_connect_to(host: str, scheme: str, told: str) -> None:
    tls = {"certificate": "a.crt", "key": "a.key"} if scheme == "preceptors" else None
    config = ServiceConfig.model_validate({"host": host, "tenants": "t.yaml", "insecure": True, "tls": tls})
    assert told in Text.from_markup(_where(config, address_of(config))).plain


def test_a_missing_extra_is_told_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else real(name, *rest)
    )
    result = run("serve")
    assert result.exit_code == 3
    assert "pip install 'preceptor[service]'" in result.stderr


def test_a_client_only_install_talks_and_shows_every_command() -> None:
    code = (
        "import sys\n"
        "for name in ('ray', 'transformers', 'safetensors', 'accelerate', 'gguf', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"  # makes an import fail as if it were not installed
        "import student_client, student_client.students, preceptor.cli\n"
        "preceptor.cli.build()(['--help'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "serve" in result.stdout


def test_relative_paths_of_a_service_config_start_at_its_folder(tmp_path: Path) -> None:
    content = {
        "auth": "none",
        "model": {
            "family": "module",
            "factory": "a:b",
            "weights": "w.safetensors",
            "inputs": {"x": "float32[*]"},
        },
        "python_path": ["code"],
    }
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(content))
    config = ServiceConfig.load(tmp_path / "teacher.yaml")
    assert config.model.weights == tmp_path / "w.safetensors"  # type: ignore[union-attr]
    assert config.python_path == (tmp_path / "code",)
