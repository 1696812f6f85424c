"""The teacher's chart: what it renders is what Ray, our own config and each other's parts expect."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import helm_python
import pytest
import yaml

from services.teacher.config import ServiceConfig, TlsConfig
from services.teacher.console_config import DEFAULT_CONSOLE_PORT
from services.teacher.environment import replica_ports, serve_environment
from student_client.options import parse_address
from tests.charts import CHARTS, RELEASES, ROOT, manifest, render, rendered, templates_of
from tests.test_tls import authority, served

if TYPE_CHECKING:
    from benchmarks.certificates import Authority
    from services.teacher.families.base import Teacher

__all__ = ["authority"]

TEACHERS = [release for release, (chart, _) in RELEASES.items() if chart == "preceptor"]


def teacher_of(release: str, **values: Any) -> dict[str, Any]:
    """The RayService of an example, or of the chart with some values."""
    return manifest(render("preceptor", values) if values else rendered(release), "RayService")


def config_of(service: dict[str, Any]) -> ServiceConfig:
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    return ServiceConfig.model_validate(application["args"])


def test_the_certificate_is_the_services_and_comes_only_where_it_is_asked_for() -> None:
    certificate = manifest(rendered("four-gpus"), "Certificate")
    # There are no definitions of cert-manager here, so this is all that it may say.
    assert certificate["spec"] == {
        "secretName": "teacher-tls",
        "duration": "2160h",
        "renewBefore": "720h",
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        "usages": ["digital signature", "server auth"],
        "dnsNames": [
            "teacher-head-svc.teachers.svc",
            "teacher-head-svc.teachers.svc.cluster.local",
            "teacher-serve-svc.teachers.svc",
            "teacher-serve-svc.teachers.svc.cluster.local",
        ],
        "issuerRef": {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "platform-ca"},
    }
    assert "Certificate" not in {each["kind"] for each in rendered("cpu")}
    assert "Certificate" not in {each["kind"] for each in render("preceptor", {"insecure": True})}


@pytest.mark.parametrize("release", TEACHERS)
def test_the_teacher_is_what_our_config_and_ray_take(release: str) -> None:
    from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415

    service = teacher_of(release)
    content = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(content)
    ours = yaml.safe_load((ROOT / "deploy/serve/teacher.yaml").read_text())
    del content["applications"][0]["args"], ours["applications"][0]["args"]
    assert content == ours
    config = config_of(service)
    assert (config.host, config.auth, config.insecure) == ("0.0.0.0", "tokens", False)  # noqa: S104
    assert config.tls is not None


@pytest.mark.parametrize("release", TEACHERS)
def test_every_process_of_ray_gets_the_environment_that_the_teacher_needs(release: str) -> None:
    service = teacher_of(release)
    expected = serve_environment(config_of(service))
    for template in templates_of(service["spec"]["rayClusterConfig"]):
        (container,) = template["spec"]["containers"]
        assert {each["name"]: each["value"] for each in container["env"]} == expected


@pytest.mark.parametrize(
    "values",
    [
        {"service": {"port": 50000}, "teacher": {"replicas": 5}},
        {"teacher": {"config": {"limits": {"max_frame_bytes": 1 << 25}}}},
        {"service": {"port": 65000}, "teacher": {"replicas": 64}},
        {"insecure": True},
        {"teacher": {"autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 30}}},
    ],
    ids=["ports", "frames", "many", "insecure", "autoscaling"],
)
def test_the_environment_follows_the_values(values: dict[str, Any]) -> None:
    service = teacher_of("", **values)
    config = config_of(service)
    (container,) = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {each["name"]: each["value"] for each in container["env"]} == serve_environment(config)


@pytest.mark.parametrize("release", TEACHERS)
def test_a_replica_has_a_pod_of_its_own(release: str) -> None:
    service = teacher_of(release)
    config, cluster = config_of(service), service["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert float(workers["rayStartParams"]["num-cpus"]) == config.num_cpus
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]
    assert float(limits.get("nvidia.com/gpu", 0)) == config.num_gpus
    scales = cluster["enableInTreeAutoscaling"]
    # Without a GPU a changed config starts each replica before the one it replaces stops.
    spare = 0 if config.num_gpus or scales else 1
    assert workers["replicas"] == workers["minReplicas"] == config.num_replicas + spare
    assert scales or workers["maxReplicas"] == workers["minReplicas"]


def test_the_autoscaler_moves_between_the_two_and_alone_asks_the_api_server() -> None:
    service = teacher_of("four-gpus")
    config, cluster = config_of(service), service["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (1, 4)
    assert (config.num_replicas, config.max_replicas) == (1, 4)
    assert config.autoscaling is not None
    assert config.autoscaling.target_queue_ms == 1000
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert workers["template"]["spec"]["automountServiceAccountToken"] is False
    fixed = teacher_of("cpu")["spec"]["rayClusterConfig"]
    assert fixed["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is False
    with pytest.raises(helm_python.HelmError, match="maxReplicas"):
        render(
            "preceptor", {"teacher": {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}}}
        )


@pytest.mark.parametrize("release", TEACHERS)
def test_students_reach_the_teachers_ports_and_nothing_of_ray(release: str) -> None:
    manifests = rendered(release)
    config = config_of(manifest(manifests, "RayService"))
    students, _own, operator, *others = manifest(manifests, "NetworkPolicy")["spec"]["ingress"]
    assert students["ports"] == [
        {"protocol": "TCP", "port": config.port, "endPort": replica_ports(config).stop - 1}
    ]
    (peer,) = students["from"]
    assert peer["namespaceSelector"]["matchExpressions"][0]["key"] == "kubernetes.io/metadata.name"
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    ports = [each["ports"][0]["port"] for each in others]
    assert ports == ([8080, DEFAULT_CONSOLE_PORT] if release == "four-gpus" else [])


@pytest.mark.parametrize(
    ("config", "port"),
    [({"console": {}}, DEFAULT_CONSOLE_PORT), ({"console": {"port": 8443}}, 8443), ({}, None)],
)
def test_the_console_is_reached_on_the_head_by_those_who_may(
    config: dict[str, Any], port: int | None
) -> None:
    values = {"teacher": {"config": config}, "networkPolicy": {"consoleNamespaces": ["platform"]}}
    manifests = render("preceptor", values)
    service = manifest(manifests, "RayService")
    assert (config_of(service).console is None) == (port is None)
    (head,) = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in head["ports"]}
    assert ports.get("console") == port
    rules = manifest(manifests, "NetworkPolicy")["spec"]["ingress"][3:]
    assert [each["ports"] for each in rules] == (
        [] if port is None else [[{"protocol": "TCP", "port": port}]]
    )


@pytest.mark.parametrize("release", TEACHERS)
def test_a_worker_is_ready_when_a_replica_of_it_serves(release: str) -> None:
    service = teacher_of(release)
    config, cluster = config_of(service), service["spec"]["rayClusterConfig"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    # KubeRay deploys the teacher once the head is ready: with a probe of the teacher it never would.
    assert not [name for name in head if name.endswith("Probe")]
    ports = {each["name"]: each["containerPort"] for each in head["ports"]}
    assert ports["serve-grpc"] == config.port
    (worker,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    _python, _m, module, address, *options = worker["readinessProbe"]["exec"]["command"]
    assert module == "services.teacher.health_cli"
    assert parse_address(address).is_secure
    ours = replica_ports(config)
    assert options[:2] == ["--any-port", f"{ours.start}-{ours.stop - 1}"]
    assert config.tls is not None
    assert ("--tcp" in options) == (config.tls.client_ca is not None)
    assert {each["mountPath"] for each in worker["volumeMounts"]} >= {
        str(path.parent) for path in (config.tls.certificate, config.tenants) if path is not None
    }


def test_the_address_of_the_notes_is_the_directory_then_the_replicas() -> None:
    with helm_python.Chart.load(CHARTS / "preceptor") as chart:
        notes = chart.render({}, name="shop", namespace="ml")["preceptor/templates/NOTES.txt"]
    address = next(line.split()[1] for line in notes.splitlines() if "address:" in line)
    assert parse_address(address).replicas == (
        "shop-head-svc.ml.svc:41500",
        "shop-serve-svc.ml.svc:41501",
    )
    assert options_of(notes)["tls"]["server_name"] == "shop-head-svc.ml.svc"


def options_of(notes: str) -> dict[str, Any]:
    line = next(line for line in notes.splitlines() if "options:" in line)
    options: dict[str, Any] = yaml.safe_load(line)["options"]
    return options


def test_the_notes_name_a_certificate_where_students_need_one() -> None:
    certificate = {"certificate_file", "key_file"}
    for secret, expected in (("", set()), ("students-ca", certificate)):
        with helm_python.Chart.load(CHARTS / "preceptor") as chart:
            files = chart.render({"tls": {"clientCa": {"secretName": secret}}}, name="a", namespace="b")
        options = options_of(files["preceptor/templates/NOTES.txt"])
        assert options["tls"].keys() & certificate == expected


@pytest.mark.parametrize("release", ["one-gpu", "four-gpus"])
def test_the_probe_of_a_worker_finds_a_replica_under_tls(
    release: str, tiny_teacher: Teacher, service_config: ServiceConfig, authority: Authority
) -> None:
    cluster = teacher_of(release)["spec"]["rayClusterConfig"]
    (worker,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    certificate, key = authority.issue("server", "teacher-head-svc.teachers.svc")
    client_ca = authority.ca_file if release == "four-gpus" else None
    tls = TlsConfig(certificate=certificate, key=key, client_ca=client_ca)
    with served(tiny_teacher, service_config, tls) as server:
        port = server.address.rpartition(":")[2]
        here = {"python": sys.executable, "/etc/preceptor/tls/tls.crt": str(certificate)}
        command = [here.get(word, word) for word in worker["readinessProbe"]["exec"]["command"]]
        ports = command.index("--any-port") + 1
        for where, code in ((f"{port}-{port}", 0), ("1-3", 1)):
            command[ports] = where
            assert subprocess.run(command, check=False, timeout=60).returncode == code
