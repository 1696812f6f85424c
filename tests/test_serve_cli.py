"""The commands of the README, run as a user runs them: serve, describe, train on a table, stop."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.test_console import ask
from tests.test_serve import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.serve, pytest.mark.weights]

ROOT = Path(__file__).resolve().parents[1]
PRECEPTOR = str(Path(sys.executable).parent / "preceptor")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """`preceptor serve` with MiniLM and a console in a process of its own, and what it prints."""
    ports = ["--port", str(free_port()), "--console-port", str(free_port())]
    command = [PRECEPTOR, "serve", "examples/text/teacher.yaml", *ports, "--json"]
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (tmp_path / "serve.log").read_text()
    yield process, json.loads(line)
    if process.poll() is None:
        process.kill()
    process.stdout.close()
    process.wait()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Questions whose class shows in their words."""
    path = tmp_path / "data.csv"
    places, things = ("Paris", "Rome", "Lima", "Oslo"), ("a lever", "a prism", "a comet", "an enzyme")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(64):
            writer.writerow([f"How far is {places[number % 4]} from village {number}?", "place"])
            writer.writerow([f"What is {things[number % 4]} in experiment {number}?", "thing"])
    return path


def test_a_text_student_is_trained_by_the_two_commands(
    served: tuple[subprocess.Popen[str], dict[str, str]], table: Path, tmp_path: Path
) -> None:
    process, told = served
    address = told["address"]
    described = subprocess.run(
        [PRECEPTOR, "describe", address, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(described.stdout)["teacher"]["name"] == "minilm"
    command = [
        PRECEPTOR,
        "train",
        str(ROOT / "examples/text/talk.yaml"),
        table.name,
        "--teacher",
        address,
        "--json",
    ]
    changes = ["--set", "epochs=6", "--set", f"output={tmp_path / 'out'}", "--set", "talk.reading=replace"]
    trained = subprocess.run(
        [*command, *changes], cwd=table.parent, capture_output=True, text=True, check=False, timeout=300
    )
    assert trained.returncode == 0, trained.stderr
    facts = json.loads(trained.stdout)
    assert facts["test"] >= 0.9  # chance is 0.5
    assert facts["waiting_s"] > 0
    times = facts["step_times"]
    assert sum(times.values()) == pytest.approx(2 * times["step_s"])  # the four parts, and their sum
    assert times["teacher_s"] > 0
    assert "where a step's time went" not in trained.stderr  # the numbers are in the JSON
    status = subprocess.run(
        [PRECEPTOR, "status", address, "--json"], capture_output=True, text=True, check=True
    )
    assert max(tenant["num_turns"] for tenant in json.loads(status.stdout)["tenants"]) > 0
    assert (Path(facts["folder"]) / "student.safetensors").exists()
    console_port = int(told["console"].rpartition(":")[2])
    _, _, page = ask(console_port, "/api/status")
    assert [each["why"] for each in json.loads(page)["conversations"]] == ["the student left"]

    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_the_recipe_that_a_newcomer_gets_trains(
    served: tuple[subprocess.Popen[str], dict[str, str]], table: Path, tmp_path: Path
) -> None:
    command = [PRECEPTOR, "train", str(ROOT / "examples/text/intent.yaml"), table.name, "--json"]
    command += ["--teacher", served[1]["address"]]
    command += ["--set", f"output={tmp_path / 'out'}", "--set", "lessons.epochs=2"]
    trained = subprocess.run(
        command, cwd=table.parent, capture_output=True, text=True, check=False, timeout=300
    )
    assert trained.returncode == 0, trained.stderr
    facts = json.loads(trained.stdout)
    assert facts["test"] >= 0.9  # chance is 0.5
    assert facts["kd_source"] == "lessons"
    assert facts["lessons"]["costs"]["num_turns"] > 0


@pytest.mark.parametrize("option", ["--port", "--console-port"])
def test_a_taken_port_is_told_before_anything_is_started(option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [PRECEPTOR, "serve", "--auth", "none", option, port],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )
    assert result.returncode == 1
    assert "can't listen" in result.stderr
