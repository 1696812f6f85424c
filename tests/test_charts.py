"""Both charts: Helm, Kubernetes and KubeRay take what they render, and what is wrong in values is named."""

from __future__ import annotations

import copy
from typing import Any

import helm_python
import pytest
import yaml

from deploy.values_schema import CHARTS, OWN_FIELDS, schema_text
from tests.charts import (
    CUSTOM_KINDS,
    EXAMPLES,
    RAY_KINDS,
    RELEASES,
    clusters_of,
    crd_problems,
    manifest,
    problems,
    render,
    rendered,
    templates_of,
)

RUN = {
    "config": {
        "student": {"factory": "shop:Student"},
        "data": {"train": "/runs/a.csv", "task": "classification"},
    },
    "suspend": True,
    "activeDeadlineSeconds": 60,
}
MORE = {
    "imagePullSecrets": [{"name": "registry"}],
    "image": {"digest": f"sha256:{0:064}"},
    "volumes": [{"name": "scratch", "emptyDir": {}}],
    "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
    "affinity": {"nodeAffinity": {}},
}
OPTIONS = [
    (
        "preceptor",
        {
            "insecure": True,
            "image": MORE["image"],
            "imagePullSecrets": MORE["imagePullSecrets"],
            "teacher": {"replicas": 3, "spareWorkers": 2}
            | {name: MORE[name] for name in ("volumes", "volumeMounts", "env", "affinity")},
            "podDisruptionBudget": {"minAvailable": 1},
            "networkPolicy": {"studentNamespaces": [], "extraEgress": [{"ports": [{"port": 443}]}]},
            "rayAuth": {"enabled": False},
        },
    ),
    (
        "preceptor-students",
        {
            "teacher": {"insecure": True, "address": "preceptor://teacher:41500"},
            "runs": {"a": RUN},
            **{name: MORE[name] for name in ("image", "imagePullSecrets", "volumes", "volumeMounts", "env")},
            "cluster": {"affinity": MORE["affinity"]},
        },
    ),
    (
        "preceptor-students",
        {
            "teacher": {"certificateSecret": {"name": "us"}, "caSecret": {"name": ""}},
            "runs": {"a": RUN},
            "rayAuth": {"secretName": "ray"},
        },
    ),
]


@pytest.mark.parametrize("release", RELEASES)
def test_helm_lints_it(release: str) -> None:
    chart, example = RELEASES[release]
    values = {} if example is None else yaml.safe_load((EXAMPLES / example).read_text())
    report = helm_python.lint(CHARTS / chart, values, strict=True)
    assert report["total_charts_linted"] == 1
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


def test_every_example_is_installed_here() -> None:
    assert {example for _, example in RELEASES.values() if example} == {
        path.name for path in EXAMPLES.iterdir()
    }


@pytest.mark.parametrize("release", RELEASES)
def test_kuberay_takes_it(release: str) -> None:
    found = [each for each in rendered(release) if each["kind"] in RAY_KINDS]
    assert found or release == "no-students"
    for each in found:
        assert crd_problems(each) == []


def test_a_field_that_kuberay_does_not_have_is_found() -> None:
    service = manifest(rendered("cpu"), "RayService")
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["prots"] = []
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplicas"] = "two"
    service["spec"]["upgradeStrategey"] = {}
    assert sorted(each.partition(":")[0] for each in crd_problems(service)) == [
        "$.spec",
        "$.spec.rayClusterConfig.headGroupSpec.template.spec.containers[0]",
        "$.spec.rayClusterConfig.workerGroupSpecs[0].minReplicas",
    ]


@pytest.mark.parametrize("release", RELEASES)
def test_kubernetes_takes_the_rest_and_the_pods(release: str) -> None:
    manifests = rendered(release)
    for each in manifests:
        if each["kind"] not in CUSTOM_KINDS:
            assert problems(each) == [], each["kind"]
    for cluster in clusters_of(manifests):
        for template in templates_of(cluster):
            pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
            pod["metadata"]["name"] = "pod"
            assert problems(pod) == []


@pytest.mark.parametrize(
    ("chart", "values"), OPTIONS, ids=["teacher in the clear", "students in the clear", "certificates"]
)
def test_what_no_example_uses_is_valid_too(chart: str, values: dict[str, Any]) -> None:
    for each in render(chart, values):
        assert (crd_problems if each["kind"] in RAY_KINDS else problems)(each) == []


def test_a_field_that_kubernetes_does_not_have_is_found() -> None:
    policy = manifest(rendered("cpu"), "NetworkPolicy")
    policy["spec"]["ingres"] = policy["spec"].pop("ingress")
    assert problems(policy) != []


@pytest.mark.parametrize("release", RELEASES)
def test_pods_are_those_that_services_budgets_and_policies_mean(release: str) -> None:
    manifests = rendered(release)
    labels = [
        template["metadata"]["labels"]
        for cluster in clusters_of(manifests)
        for template in templates_of(cluster)
    ]
    assert all("app.kubernetes.io/name" not in each for each in labels)  # KubeRay selects the head by it
    policy = manifest(manifests, "NetworkPolicy")["spec"]
    meant = policy["podSelector"]["matchLabels"]
    assert all(meant.items() <= each.items() for each in labels)
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    for budget in (each for each in manifests if each["kind"] == "PodDisruptionBudget"):
        chosen = budget["spec"]["selector"]["matchLabels"]
        assert [chosen.items() <= each.items() for each in labels] == [False, True]


@pytest.mark.parametrize("release", RELEASES)
def test_dns_is_asked_wherever_it_is(release: str) -> None:
    # A cache on the node is in the node's network, which no selector names.
    rules = manifest(rendered(release), "NetworkPolicy")["spec"]["egress"]
    (dns,) = (rule for rule in rules if {"protocol": "UDP", "port": 53} in rule.get("ports", ()))
    assert dns == {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}


@pytest.mark.parametrize(
    "teacher",
    [{"replicas": 2}, {"autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 4}}],
    ids=["replicas", "autoscaling"],
)
def test_a_budget_keeps_no_more_replicas_than_there_are(teacher: dict[str, Any]) -> None:
    for least, expected in ((None, 1), (0, 0), (2, 2)):
        values = {"teacher": teacher, "podDisruptionBudget": {"minAvailable": least}}
        budget = manifest(render("preceptor", values), "PodDisruptionBudget")
        assert budget["spec"]["minAvailable"] == expected
    with pytest.raises(helm_python.HelmError, match=r"minAvailable: got 3, expected at most the 2 replicas"):
        render("preceptor", {"teacher": teacher, "podDisruptionBudget": {"minAvailable": 3}})


@pytest.mark.parametrize("release", RELEASES)
def test_nobody_is_root_or_gains_rights(release: str) -> None:
    for cluster in clusters_of(rendered(release)):
        assert cluster["authOptions"]["mode"] == "token"
        for template in templates_of(cluster):
            pod = template["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] == 1000
            (container,) = pod["containers"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize(
    ("chart", "values", "where"),
    [
        ("preceptor", {"teachr": {}}, "teachr"),
        ("preceptor", {"teacher": {"replica": 2}}, "replica"),
        ("preceptor", {"teacher": {"config": {"split_layr": 3}}}, "split_layr"),
        ("preceptor", {"teacher": {"config": {"host": "127.0.0.1"}}}, "host"),
        ("preceptor", {"teacher": {"config": {"limits": {"max_frame_bytes": 1}}}}, "max_frame_bytes"),
        ("preceptor", {"teacher": {"config": {"model": {"family": "encodr"}}}}, "model"),
        ("preceptor", {"teacher": {"autoscaling": {"policy": {"target_ms": 1}}}}, "target_ms"),
        ("preceptor", {"teacher": {"env": [{"name": "PRECEPTOR_HOST", "value": "::"}]}}, "env"),
        ("preceptor", {"teacher": {"gpus": 0.5}}, "gpus"),
        ("preceptor", {"tls": {"certManager": {"enabled": False}}}, "tls"),
        ("preceptor", {"gcsFaultTolerance": {"enabled": True}}, "redisAddress"),
        ("preceptor", {"podSecurityContext": {"runAsNonRoot": False}}, "runAsNonRoot"),
        ("preceptor", {"metrics": {"podMonitor": {"interval": "often"}}}, "interval"),
        ("preceptor", {"metrics": {"dashboards": {}}}, "dashboards"),
        ("preceptor-students", {"teacher": {"address": "preceptor://teacher:41500"}}, "address"),
        ("preceptor-students", {"runs": {"a": {"config": {"epoch": 3}}}}, "epoch"),
        ("preceptor-students", {"runs": {"a": {"config": {"output": "/out"}}}}, "output"),
        ("preceptor-students", {"fleets": {"a": {"schedule": "weekly", "config": {}}}}, "schedule"),
    ],
)
def test_a_wrong_value_is_named(chart: str, values: dict[str, Any], where: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=where):
        render(chart, values)


@pytest.mark.parametrize("name", ["1st", "shop.ml", "a" * 48])
def test_a_release_whose_name_kuberay_refuses_is_refused(name: str) -> None:
    with pytest.raises(helm_python.HelmError, match="release name"):
        render("preceptor", name=name)


@pytest.mark.parametrize("chart", OWN_FIELDS)
def test_the_schemas_know_our_configs_as_they_are(chart: str) -> None:
    path = CHARTS / chart / "values.schema.json"
    assert path.read_text() == schema_text(chart), "run `make charts`"


def test_what_the_charts_set_themselves_exists() -> None:
    for own in OWN_FIELDS.values():
        for model, fields in own.items():
            assert fields <= model.model_fields.keys()
