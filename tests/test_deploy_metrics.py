"""The teacher's chart: Prometheus finds its pods, and Grafana its dashboard."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest

from deploy.dashboard import DASHBOARD
from tests.charts import clusters_of, crd_problems, manifest, problems, render, rendered, templates_of


def kinds_of(manifests: list[dict[str, Any]]) -> set[str]:
    return {each["kind"] for each in manifests}


def test_prometheus_asks_all_pods_at_a_port_that_they_have() -> None:
    manifests = rendered("four-gpus")
    monitor = manifest(manifests, "PodMonitor")
    assert (monitor["apiVersion"], monitor["metadata"]["name"]) == ("monitoring.coreos.com/v1", "teacher")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["metadata"]["labels"]["app.kubernetes.io/instance"] == "teacher"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (cluster,) = clusters_of(manifests)
    for template in templates_of(cluster):
        chosen = monitor["spec"]["selector"]["matchLabels"]
        assert chosen.items() <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports[endpoint["port"]] == 8080  # where KubeRay has Ray tell


def test_a_pod_monitor_says_no_more_than_this() -> None:
    # Its definition is not at hand everywhere.
    assert manifest(rendered("four-gpus"), "PodMonitor")["spec"] == {
        "selector": {
            "matchLabels": {
                "app.kubernetes.io/instance": "teacher",
                "app.kubernetes.io/part-of": "preceptor",
            }
        },
        "podMetricsEndpoints": [
            {
                "port": "metrics",
                "interval": "15s",
                "metricRelabelings": [{"action": "labeldrop", "regex": "otel_scope_.*"}],
            }
        ],
    }


def test_prometheus_operator_takes_it() -> None:
    monitor = manifest(rendered("four-gpus"), "PodMonitor")
    assert crd_problems(monitor) == []
    monitor["spec"]["podMetricsEndpoints"][0]["intervall"] = "15s"
    assert len(crd_problems(monitor)) == 1


def test_the_policy_lets_prometheus_in_or_the_release_is_refused() -> None:
    (rule,) = (
        rule
        for rule in manifest(rendered("four-gpus"), "NetworkPolicy")["spec"]["ingress"]
        if {"protocol": "TCP", "port": 8080} in rule.get("ports", ())
    )
    assert "monitoring" in str(rule["from"])
    values: dict[str, Any] = {"metrics": {"podMonitor": {"enabled": True}}}
    with pytest.raises(helm_python.HelmError, match=r"networkPolicy\.metricsNamespaces is empty"):
        render("preceptor", values)
    assert "PodMonitor" in kinds_of(render("preceptor", {**values, "networkPolicy": {"enabled": False}}))


def test_grafana_is_given_the_dashboard_as_it_is() -> None:
    dashboard = manifest(rendered("four-gpus"), "ConfigMap")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard["data"] == {"preceptor.json": DASHBOARD.read_text()}
    assert problems(dashboard) == []
    labels = {"grafana_dashboard": None, "dashboards": "here"}
    other = render("preceptor", {"metrics": {"dashboard": {"enabled": True, "labels": labels}}})
    found = manifest(other, "ConfigMap")["metadata"]["labels"]
    assert found["dashboards"] == "here"
    assert "grafana_dashboard" not in found


def test_neither_is_there_unless_it_is_asked_for() -> None:
    assert kinds_of(rendered("cpu")) == {"RayService", "NetworkPolicy", "PodDisruptionBudget"}
