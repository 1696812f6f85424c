"""The Dockerfile, as far as can be told without building it: whatever it names exists and is pinned."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.charts import CHARTS, RELEASES, ROOT, clusters_of, rendered, templates_of

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TARGETS = ("teacher", "student")


@dataclass
class Stage:
    """A stage of the Dockerfile: what it is made from, and its instructions."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [rest for each, rest in self.steps if each == instruction]


def read_stages() -> dict[str, Stage]:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    last: Stage | None = None
    for line in filter(None, (line.strip() for line in text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            last = stages[name] = Stage(base)
        elif last is not None:
            last.steps.append((instruction, rest))
    return stages


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return read_stages()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def inherited(stages: dict[str, Stage], name: str, instruction: str) -> str:
    """The last of an instruction's in a stage or in those that it is made from."""
    while name in stages:
        if found := stages[name].all(instruction):
            return found[-1]
        name = stages[name].base
    raise AssertionError(f"{instruction}: not there")


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path into the build."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and fnmatch.fnmatchcase(path, pattern):
            sent = line.startswith("!")
    return sent


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_copied_exists_and_is_sent(stages: dict[str, Stage]) -> None:
    copied = []
    for stage in stages.values():
        for words in map(str.split, stage.all("COPY")):
            if words[0].startswith("--from="):
                assert words[0].removeprefix("--from=") in stages
            else:
                copied += words[:-1]
    assert {"constraints.txt", "services", "protos"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), path
        assert is_sent(path), path
    assert not any(is_sent(path) for path in ("tests", ".git", "shared", ".venv", "tenants.yaml"))


def test_the_wheel_has_what_serves_proxies_import(stages: dict[str, Stage], tmp_path: Path) -> None:
    sources = {word for copy in stages["wheel"].all("COPY") for word in copy.split()[:-1]}
    for name in sources:  # nothing else is there when the image is built
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "out").iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    functions = yaml.safe_load((ROOT / "deploy/serve/teacher.yaml").read_text())["grpc_options"]
    for function in functions["grpc_servicer_functions"]:
        assert function.rpartition(".")[0].replace(".", "/") + ".py" in names
    assert "services/teacher/health_cli.py" in names
    assert "student_client/cli.py" in names


def test_extras_exist_and_all_they_need_is_pinned(
    stages: dict[str, Stage], project: dict[str, Any], pins: dict[str, str]
) -> None:
    extras = project["optional-dependencies"]
    for target in TARGETS:
        (install,) = stages[f"{target}-packages"].all("RUN")
        assert "--constraint constraints.txt" in install
        (wanted,) = re.findall(r"\.whl\)\[([\w,]+)\]", install)
        wanted = wanted.split(",")
        assert set(wanted) <= extras.keys() - {"dev"}
        needed = project["dependencies"] + [each for extra in wanted for each in extras[extra]]
        for requirement in map(Requirement, needed):
            version = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement
    assert "service" not in re.findall(r"\[([\w,]+)\]", stages["student-packages"].all("RUN")[0])[0]


def test_pip_installs_nothing_that_is_not_pinned(stages: dict[str, Stage], pins: dict[str, str]) -> None:
    commands = [
        command.strip()
        for stage in stages.values()
        for run in stage.all("RUN")
        for command in re.split(r"&&|;| then ", run)
        if "pip install" in command
    ]
    assert len(commands) == 4
    for command in commands:
        assert "--constraint constraints.txt" in command
    assert canonicalize_name("hatchling") in pins
    (build_requires,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert Requirement(build_requires).specifier.contains(pins["hatchling"])


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_the_charts_user_and_never_as_root(stages: dict[str, Stage], target: str) -> None:
    user = inherited(stages, target, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # a name would not tell Kubernetes that it is not root
    (chart,) = (name for name in ("preceptor", "preceptor-students") if target in _image(name))
    release = {"preceptor": "cpu", "preceptor-students": "students"}[chart]
    for cluster in clusters_of(rendered(release)):
        for template in templates_of(cluster):
            context = template["spec"]["securityContext"]
            assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


def _image(chart: str) -> str:
    image: str = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())["image"]["repository"]
    return image


def test_the_examples_run_the_images_that_the_page_builds_and_pushes() -> None:
    page = (ROOT / "docs" / "operate.md").read_text()
    run = {
        template["spec"]["containers"][0]["image"]
        for release, (_, example) in RELEASES.items()
        for cluster in clusters_of(rendered(release) if example else [])
        for template in templates_of(cluster)
    }
    assert run == set(re.findall(r"-t (\S+) \.$", page, re.MULTILINE))
    assert run == set(re.findall(r"docker push (\S+)$", page, re.MULTILINE))


@pytest.mark.parametrize("target", TARGETS)
def test_its_command_exists(stages: dict[str, Stage], project: dict[str, Any], target: str) -> None:
    program, command, *_ = json.loads(inherited(stages, target, "CMD"))
    assert program in project["scripts"]
    module = project["entry-points"]["preceptor.commands"][command].partition(":")[0]
    side = {"teacher": "services", "student": "student_client"}[target]
    assert module.startswith(side)


def test_the_commands_of_the_students_chart_exist(project: dict[str, Any]) -> None:
    for each in rendered("students"):
        spec = each["spec"] if each["kind"].startswith("Ray") else {}
        entrypoint = spec.get("jobTemplate", spec).get("entrypoint", "preceptor train")
        program, command, *_ = shlex.split(entrypoint)
        assert program in project["scripts"]
        assert command in project["entry-points"]["preceptor.commands"]


def test_its_python_and_its_ray_are_ours(
    stages: dict[str, Stage], project: dict[str, Any], pins: dict[str, str]
) -> None:
    (tag,) = re.findall(r"^ARG PYTHON=(\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert Requirement(f"python{project['requires-python']}").specifier.contains(tag.partition("-")[0])
    outside = {stage.base for stage in stages.values()} - stages.keys()
    assert outside == {"python:${PYTHON}"}
    for release in RELEASES:
        for cluster in clusters_of(rendered(release)):
            assert cluster["rayVersion"] == pins["ray"]
    versions = {yaml.safe_load((path / "Chart.yaml").read_text())["appVersion"] for path in CHARTS.iterdir()}
    assert versions == {project["version"]}
