"""Two Ray clusters, as operators and teams have them: the teacher's, of two nodes, and the students' own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from benchmarks.certificates import Authority
from services.teacher.tenants import Tenant, Tenants, new_key
from student_client.fleet_jobs import job_server
from tests.test_serve import free_port
from tests.test_tls import tls_of
from tests.toy_student import row_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.teacher.config import ServiceConfig

pytestmark = pytest.mark.serve

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PATIENCE_S = 240


@contextlib.contextmanager
def served(config: ServiceConfig, folder: Path) -> Iterator[dict[str, Any]]:
    """Runs `toy_cluster` while open; yields what it tells."""
    path = folder / "service.json"
    path.write_text(config.model_dump_json())
    with (
        (folder / "cluster.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.toy_cluster", str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "cluster.log").read_text()[-3000:]
        try:
            yield json.loads(line)
        finally:
            process.communicate(timeout=PATIENCE_S)


def test_a_job_on_the_students_cluster_learns_from_the_teacher_on_another(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    token, key = new_key("support")
    (tmp_path / "support.token").write_text(token)
    Tenants(tenants={"support": Tenant(keys=(key,))}).save(tmp_path / "tenants.yaml")
    service = row_config(
        tmp_path,
        port=free_port(),
        drain_s=0.5,
        num_cpus=0.5,
        tls=tls_of(authority),
        tenants=tmp_path / "tenants.yaml",
        audit_log=tmp_path / "audit.jsonl",
    )
    work = tmp_path / "work"
    work.mkdir()
    (work / "data.csv").write_text("ids,label\n" + "".join(f"{row % 32},{row % 2}\n" for row in range(64)))
    run = {
        "name": "toy",
        "output": str(tmp_path / "runs"),
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
        "talk": {"codec": {"message_dim": 4}},
        "losses": {"interact": 1.0, "kd": 0.5},
        "python_path": [str(ROOT)],
    }
    with served(service, tmp_path) as facts, job_server(None) as (url, is_own):
        assert is_own
        assert facts["nodes"] == 2
        options = {"token_file": str(tmp_path / "support.token"), "tls": {"ca_file": str(authority.ca_file)}}
        run["teacher"] = {"address": facts["address"], "options": options}
        (work / "run.yaml").write_text(yaml.safe_dump(run))
        done = subprocess.run(
            [
                *(str(BIN / "ray"), "job", "submit", "--address", url, "--working-dir", str(work), "--"),
                *(str(BIN / "preceptor"), "train", "run.yaml"),
            ],
            cwd=ROOT,
            env={**os.environ, "RAY_AUTH_MODE": "token"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads((tmp_path / "runs/toy/result.json").read_text())["epochs"] == 2
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {line["tenant"] for line in lines if line["event"] == "opened"} == {"support"}
    assert token not in done.stdout + done.stderr + (tmp_path / "audit.jsonl").read_text()
