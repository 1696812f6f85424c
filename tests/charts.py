"""Renders the charts as Helm does, and judges what comes out as an API server would."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CHARTS",
    "CUSTOM_KINDS",
    "EXAMPLES",
    "KUBERNETES",
    "RAY_KINDS",
    "RELEASES",
    "ROOT",
    "clusters_of",
    "crd_problems",
    "manifest",
    "problems",
    "render",
    "rendered",
    "templates_of",
]

ROOT = Path(__file__).resolve().parents[1]
CHARTS = ROOT / "deploy" / "helm"
EXAMPLES = ROOT / "deploy" / "examples"
KUBERNETES = "1.37.0"
RAY_KINDS = ("RayService", "RayJob", "RayCronJob")
CUSTOM_KINDS = (*RAY_KINDS, "Certificate", "PodMonitor")
# What is installed by which chart: the examples, and the charts as they are.
RELEASES = {
    "defaults": ("preceptor", None),
    "cpu": ("preceptor", "cpu.yaml"),
    "one-gpu": ("preceptor", "one-gpu.yaml"),
    "four-gpus": ("preceptor", "four-gpus.yaml"),
    "no-students": ("preceptor-students", None),
    "students": ("preceptor-students", "students.yaml"),
}

# By API group, the variable that names the folder with its definitions, and where they are else.
_CRDS = {
    "ray.io": ("KUBERAY_CRDS", "kuberay-crds"),
    "monitoring.coreos.com": ("PROMETHEUS_OPERATOR_CRDS", "prometheus-operator-crds"),
}


def render(
    chart: str, values: dict[str, Any] | None = None, *, name: str = "teacher", namespace: str = "teachers"
) -> list[dict[str, Any]]:
    """Returns the manifests of a release.

    Raises:
        helm_python.HelmError: Helm refuses the values.
    """
    with helm_python.Chart.load(CHARTS / chart) as loaded:
        files = loaded.render(values or {}, name=name, namespace=namespace)
    return [
        document
        for path, text in files.items()
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document is not None
    ]


@cache
def _values(example: str) -> str:
    return (EXAMPLES / example).read_text()


def rendered(release: str) -> list[dict[str, Any]]:
    """Returns the manifests of one of `RELEASES`."""
    chart, example = RELEASES[release]
    return render(chart, None if example is None else yaml.safe_load(_values(example)))


def manifest(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Returns the only manifest of a kind."""
    (found,) = (each for each in manifests if each["kind"] == kind)
    return found


def templates_of(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod templates of a Ray cluster."""
    yield cluster["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster["workerGroupSpecs"])


def clusters_of(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The Ray clusters that a release has or will have."""
    for each in manifests:
        spec = each.get("spec", {})
        if each["kind"] == "RayService":
            yield spec["rayClusterConfig"]
        elif each["kind"] in RAY_KINDS:
            yield spec.get("jobTemplate", spec)["rayClusterSpec"]


def problems(document: dict[str, Any]) -> list[str]:
    """Returns what Kubernetes itself has against a manifest of a core kind, strictly."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def crd_problems(document: dict[str, Any]) -> list[str]:
    """Returns what a custom kind's definition has against a manifest; skips the test where that is not."""
    group, _, version = document["apiVersion"].partition("/")
    variable, folder = _CRDS[group]
    crds = Path(os.environ.get(variable, ROOT.parent / "shared" / "data" / folder))
    if not crds.is_dir():
        pytest.skip(f"the definitions of {group} are not in {crds}; {variable} may name their folder")
    errors = _validator(crds / f"{group}_{document['kind'].lower()}s.yaml", version).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


@cache
def _validator(path: Path, version: str) -> Draft202012Validator:
    # The files have 20,000 lines; the loader in C is as safe as the other.
    content = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    (found,) = (each for each in content["spec"]["versions"] if each["name"] == version)
    return Draft202012Validator(_strict(found["schema"]["openAPIV3Schema"]))


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a structural schema that refuses unknown fields, where an API server would drop them."""
    strict = dict(schema)
    if "properties" in strict:
        strict["properties"] = {name: _strict(each) for name, each in strict["properties"].items()}
        if not strict.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    for name in ("items", "additionalProperties"):
        if isinstance(strict.get(name), dict):
            strict[name] = _strict(strict[name])
    if strict.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return strict
