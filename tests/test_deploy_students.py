"""The students' chart: its files are what `preceptor train` and `fleet` read; what they name is mounted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import helm_python
import yaml

from student_client.config import TrainConfig
from student_client.fleet_config import FleetConfig
from student_client.options import parse_address
from tests.charts import CHARTS, EXAMPLES, RAY_KINDS, manifest, render, rendered, templates_of

if TYPE_CHECKING:
    from pathlib import Path


def test_students_are_what_train_and_fleet_read(tmp_path: Path) -> None:
    manifests = rendered("students")
    texts = [each["data"]["run.yaml"] for each in manifests if each["kind"] == "ConfigMap"]
    entries = [spec["entrypoint"] for spec in _job_specs(manifests)]
    assert [entry.split()[:3] for entry in entries] == [
        ["preceptor", "fleet", "/etc/preceptor/run/run.yaml"],
        ["preceptor", "train", "/etc/preceptor/run/run.yaml"],
    ]
    (path := tmp_path / "run.yaml").write_text(texts[0])
    fleet = FleetConfig.load(path)
    path.write_text(texts[1])
    run = TrainConfig.load(path, {})
    assert fleet.job.ship_client is False  # the image has it
    for config in (*fleet.runs, run):
        assert config.teacher is not None
        options = config.teacher.options.at(parse_address(config.teacher.address))
        assert options.tls is not None
        assert options.tls.server_name == "teacher-head-svc.teachers.svc"
        assert str(config.output) == "/runs"


def _job_specs(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    specs = [each["spec"] for each in manifests if each["kind"] in RAY_KINDS]
    return [spec.get("jobTemplate", spec) for spec in specs]


def test_what_a_student_reads_is_mounted_where_it_is_read() -> None:
    manifests = rendered("students")
    text = next(each["data"]["run.yaml"] for each in manifests if each["kind"] == "ConfigMap")
    options = yaml.safe_load(text)["base"]["teacher"]["options"]
    for spec in _job_specs(manifests):
        for template in templates_of(spec["rayClusterSpec"]):
            (container,) = template["spec"]["containers"]
            mounted = {each["mountPath"] for each in container["volumeMounts"]}
            assert {"/runs", options["token_file"].rpartition("/")[0]} <= mounted
            assert options["tls"]["ca_file"].rpartition("/")[0] in mounted
            volumes = {each["name"] for each in template["spec"]["volumes"]}
            assert {each["name"] for each in container["volumeMounts"]} == volumes


def test_the_teacher_of_the_defaults_is_the_documented_release() -> None:
    teacher = yaml.safe_load((CHARTS / "preceptor-students" / "values.yaml").read_text())["teacher"]
    example = yaml.safe_load((EXAMPLES / "one-gpu.yaml").read_text())
    with helm_python.Chart.load(CHARTS / "preceptor") as chart:
        notes = chart.render(example, name="teacher", namespace="teachers")["preceptor/templates/NOTES.txt"]
    assert f"address: {teacher['address']}\n" in notes
    assert f"server_name: {teacher['serverName']}}}" in notes
    assert f"the ports {teacher['ports']['first']} to {teacher['ports']['last']} " in notes


def test_another_config_is_another_job() -> None:
    values = yaml.safe_load((EXAMPLES / "students.yaml").read_text())
    first = manifest(render("preceptor-students", values), "RayJob")["metadata"]["name"]
    values["runs"]["intents"]["config"]["epochs"] = 13
    second = manifest(render("preceptor-students", values), "RayJob")["metadata"]["name"]
    assert first != second
    assert all(name.startswith("teacher-intents-") for name in (first, second))
