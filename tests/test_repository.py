"""Rules about the repository itself: stubs, names, import direction, sizes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import student_client

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PROTOS = ROOT / "protos"
STUBS = PROTOS / "preceptor" / "v1"
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
# The files of the service that may know Ray or gRPC.
EDGE = {
    "access.py",
    "app.py",
    "certificates.py",
    "cli.py",
    "directory_server.py",
    "health.py",
    "health_cli.py",
    "ingress.py",
    "local.py",
    "ray_metrics.py",
}


def _sources(*folders: str) -> list[Path]:
    """Python files that people write, below some folders."""
    return sorted(
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.parent != STUBS
    )


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _imports(path: Path) -> Iterator[str]:
    """Yields the modules that a file imports anywhere in it, also for type checking only."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _violations(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {module}"
        for path in paths
        for module in _imports(path)
        if forbidden & {part for name in module.split(".") for part in (name, name.rpartition("_")[2])}
    ]


def test_stubs_are_fresh(tmp_path: Path) -> None:
    protos = sorted(str(path.relative_to(PROTOS)) for path in STUBS.glob("*.proto"))
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *out, *protos]
    subprocess.run(command, check=True, timeout=60, cwd=PROTOS)
    made = {path.name: path.read_text() for path in (tmp_path / "preceptor" / "v1").iterdir()}
    assert len(made) == 3 * len(protos)
    for name, text in made.items():
        assert (STUBS / name).read_text() == text, f"{name} is stale: run protoc again"


def test_the_protocol_passes_buf() -> None:
    buf = Path(sys.executable).parent / "buf"
    result = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_students_names_are_these() -> None:
    assert student_client.__all__ == [
        "AccessError",
        "ClientOptions",
        "Compression",
        "DeadlineExceededError",
        "FrameTooLargeError",
        "InvalidMessageError",
        "ObservationKind",
        "OverloadedError",
        "Reading",
        "Talk",
        "Taps",
        "TeacherChangedError",
        "TeacherClient",
        "TeacherError",
        "TeacherTalk",
        "TeacherUnavailableError",
        "TurnConflictError",
        "UnsupportedByTeacherError",
        "WireType",
        "losses",
    ]
    assert all(hasattr(student_client, name) for name in student_client.__all__)


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("services", {"student_client"}),
        ("student_client", {"services"}),
        ("protos/preceptor", {"services", "student_client"}),
    ],
)
def test_dependencies_point_inwards(folder: str, forbidden: set[str]) -> None:
    paths = _sources(folder)
    assert len(paths) > 3
    heads = {module.partition(".")[0] for path in paths for module in _imports(path)}
    assert not heads & forbidden, _violations(paths, forbidden)


def test_the_teachers_core_knows_neither_ray_nor_grpc() -> None:
    core = [path for path in _sources("services/teacher") if path.name not in EDGE]
    names = {path.name for path in core}
    assert {"engine.py", "passes.py", "conversation.py", "decoder.py", "servicer.py"} <= names
    assert _violations(core, {"ray", "grpc"}) == []
    edge = [path for path in _sources("services/teacher") if path.name in EDGE]
    assert _violations(edge, {"ray", "grpc"}) != []


def test_the_students_core_does_not_know_ray() -> None:
    edge = {"cli.py", "cluster.py", "fleet_jobs.py", "streaming.py", "train.py", "train_worker.py"}
    core = [path for path in _sources("student_client") if path.name not in edge]
    assert len(core) > 40
    assert _violations(core, {"ray"}) == []


@pytest.mark.parametrize(
    "folder", ["services", "student_client", "protos", "examples", "benchmarks", "deploy", "tests"]
)
def test_files_are_short(folder: str) -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in _sources(folder)
        if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert long == {}


def _num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring: what is explained well must not count as long."""
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    lines = [function, docstring] if docstring else [function]
    spans = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in lines]
    return spans[0] - sum(spans[1:])


@pytest.mark.parametrize(
    "folder", ["services", "student_client", "protos", "examples", "benchmarks", "deploy"]
)
def test_functions_are_short(folder: str) -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": lines
        for path in _sources(folder)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := _num_lines(node)) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_no_tracked_file_names_a_folder_of_one_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    machine = re.compile(r"(?<![\w.}])/(work|root|Users)\b")
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in listed.stdout.splitlines()
        if (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), 1)
        if machine.search(line)
    ]
    assert found == []
