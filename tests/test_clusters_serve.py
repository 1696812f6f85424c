"""The README's section on clusters, run: a teacher's of two nodes, the students' own, between them TLS."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import yaml

from benchmarks.certificates import Authority
from student_client.fleet_jobs import job_server
from tests.test_serve import free_port
from tests.test_tls import tls_of
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.serve

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PATIENCE_S = 240
GRACE_S = 5  # then they are killed; a head's `ray start` would take half a minute
OBJECT_STORE_BYTES = 100 << 20


class Machines:
    """What the README's lines run on: this machine, with names and ports that they don't share with others.

    Attributes:
        port: the teacher's.
        folder: where the platform team's files are.
    """

    def __init__(self, folder: Path, temporary: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._head_port = free_port()
        self._temporary = temporary
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN": secrets.token_hex(),
        }

    def run(self, *lines: str) -> str:
        """Runs lines in a shell to their end; returns what they print."""
        command = ["bash", "-euc", "\n".join(self._here(line) for line in lines)]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    @contextlib.contextmanager
    def running(self, *lines: str, until: str) -> Iterator[str]:
        """Runs lines, of which the last stays, in a shell while open; yields what says that it is ready."""
        command = ["bash", "-euc", "\n".join([*(self._here(line) for line in lines[:-1]), self._last(lines)])]
        with (
            tempfile.NamedTemporaryFile("w+", dir=self.folder, suffix=".log") as said,
            subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdout=said, stderr=subprocess.STDOUT
            ) as process,
        ):
            try:
                yield self._await(until, Path(said.name), process)
            finally:
                self._stop(process.pid)

    @staticmethod
    def _await(until: str, said: Path, process: subprocess.Popen[bytes]) -> str:
        """Returns the first line of a process with some words in it."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            has_ended = process.poll() is not None
            lines = said.read_text().splitlines()
            for line in lines:
                if until in line:
                    return line
            assert not has_ended, said.read_text()[-3000:]
            assert time.monotonic() < deadline_s, said.read_text()[-3000:]
            time.sleep(0.1)

    def _last(self, lines: tuple[str, ...]) -> str:
        """Returns the line that stays, so that it is the shell's own process."""
        line = self._here(lines[-1])
        variables, command = re.fullmatch(r"((?:\w+=\S+ )*)(.*)", line).groups()  # type: ignore[union-attr]
        return f"{variables}exec {command}"

    def _here(self, line: str) -> str:
        """Returns a line of the README for this machine, whose Rays are many."""
        line = (
            line.partition("#")[0].strip().replace("6379", str(self._head_port)).replace("HEAD", "127.0.0.1")
        )
        if not line.startswith("ray start"):
            return line
        more = {
            "object-store-memory": OBJECT_STORE_BYTES,
            "dashboard-agent-listen-port": free_port(),
            "node-ip-address": "127.0.0.1",
        }
        if "--head" in line:  # without a CPU, so that replicas have to be on the other node
            more |= {"num-cpus": 0, "include-dashboard": "false", "temp-dir": self._temporary}
            more |= {"ray-client-server-port": free_port()}
        else:
            more |= {"num-cpus": 4}
        return " ".join([line, "--block", *(f"--{name}={value}" for name, value in more.items())])

    @staticmethod
    def _stop(pid: int) -> None:
        """Ends a process and all that it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            children = process.children(recursive=True)
            process.terminate()
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(GRACE_S)
            for each in (process, *children):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary:
        yield Machines(tmp_path, temporary)


def readme() -> tuple[list[str], list[str], list[str], dict[str, object]]:
    """Returns the lines for each machine, for the head and for the team, and what its run names."""
    page = (ROOT / "README.md").read_text()
    section = page.partition("## On a cluster")[2].partition("\n## ")[0]
    blocks = [block.strip().splitlines() for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]
    (text,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    each, head, team = blocks
    return each, head, team, yaml.safe_load(text)


def prepare_run(work: Path, teacher: dict[str, object]) -> None:
    """Writes the team's table and `run.yaml`."""
    work.mkdir()
    (work / "data.csv").write_text("ids,label\n" + "".join(f"{row % 32},{row % 2}\n" for row in range(64)))
    run = {
        **teacher,
        "name": "toy",
        "output": str(work / "runs"),
        "epochs": 2,
        "batch_size": 16,
        "cpus_per_worker": 0.5,
        "student": {
            "factory": "tests.toy_student:ToyStudent",
            "lower": "blocks.0",
            "upper": "blocks.1",
            "num_classes_kwarg": "num_classes",
        },
        "data": {"train": "data.csv", "task": "classification", "features": {"ids": "int64"}},
        "talk": {"codec": {"message_dim": 4}, "reading": "replace"},
        "losses": {"interact": 1.0, "kd": 0.5},
        "python_path": [str(ROOT)],
    }
    (work / "run.yaml").write_text(yaml.safe_dump(run))


def test_the_readmes_lines_for_clusters_train_a_student(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (authenticate, prepare, start_head, start_other), (add_tenant, serve), (submit,), team = readme()
    authority = Authority(tmp_path, "ca")
    service = row_config(
        tmp_path,
        port=machines.port,
        drain_s=0.5,
        num_cpus=0.5,
        tls=tls_of(authority),
        auth="tokens",
        tenants=tmp_path / "tenants.yaml",
        audit_log=tmp_path / "audit.jsonl",
    )
    (tmp_path / "teacher.yaml").write_text(
        yaml.safe_dump(service.model_dump(mode="json", exclude_unset=True))
    )
    text = yaml.safe_dump(team).replace("HEAD:41500", f"127.0.0.1:{machines.port}")
    files = {"support.token": tmp_path / "support.token", "ca.crt": authority.ca_file}
    for name, path in files.items():  # which the team was given
        text = text.replace(name, str(path))
    prepare_run(tmp_path / "work", yaml.safe_load(text))
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")  # where the team's Ray finds `preceptor`
    environment = (authenticate, prepare)
    with contextlib.ExitStack() as stack:
        stack.enter_context(machines.running(*environment, start_head, until="--block"))
        stack.enter_context(machines.running(*environment, start_other, until="--block"))
        assert "token" in machines.run(add_tenant)
        ready = stack.enter_context(machines.running(*environment, serve, until="is ready"))
        assert f"preceptors://127.0.0.1:{machines.port}" in ready
        url, is_own = stack.enter_context(job_server(None))
        assert is_own
        folder = shlex.quote(str(tmp_path / "work"))
        line = submit.replace("http://STUDENTS:8265", url).replace(
            "--working-dir .", f"--working-dir {folder}"
        )
        said = machines.run("unset RAY_AUTH_TOKEN", authenticate, line)
    assert json.loads((tmp_path / "work/runs/toy/result.json").read_text())["epochs"] == 2
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {line["tenant"] for line in lines if line["event"] == "opened"} == {"support"}
    assert (tmp_path / "support.token").read_text().strip() not in said + (
        tmp_path / "audit.jsonl"
    ).read_text()
