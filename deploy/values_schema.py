"""Puts the schemas of our configs into the charts' `values.schema.json`: Helm then finds a typo in a config.

Run it after a config has changed: `make charts`. What else is in those files is written by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.teacher.config import ScalingConfig, ServiceConfig
from student_client.config import TrainConfig
from student_client.fleet_config import FleetConfig
from student_client.options import ClientOptions

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["CHARTS", "OWN_FIELDS", "definitions", "schema_text"]

CHARTS = Path(__file__).parent / "helm"

# By chart and config, the fields that the chart itself sets.
OWN_FIELDS: dict[str, dict[type[BaseModel], frozenset[str]]] = {
    "preceptor": {
        ServiceConfig: frozenset(
            {
                "host",
                "port",
                "tls",
                "auth",
                "tenants",
                "insecure",
                "autoscaling",
                "num_replicas",
                "num_cpus",
                "num_gpus",
            }
        ),
        ScalingConfig: frozenset({"max_replicas"}),
    },
    "preceptor-students": {
        TrainConfig: frozenset({"name", "output", "teacher"}),
        FleetConfig: frozenset({"name", "output", "address"}),
        ClientOptions: frozenset({"token_file", "tls", "insecure"}),
    },
}


def definitions(chart: str) -> dict[str, Any]:
    """Returns the `$defs` of a chart: what its values may say of our configs."""
    found: dict[str, Any] = {}
    for model, own_fields in OWN_FIELDS[chart].items():
        schema = model.model_json_schema()
        found |= schema.pop("$defs", {})
        schema["properties"] = {
            name: each for name, each in schema["properties"].items() if name not in own_fields
        }
        schema["required"] = [name for name in schema.get("required", []) if name not in own_fields]
        found[model.__name__] = schema
    cleaned: dict[str, Any] = _without_titles(found)
    return dict(sorted(cleaned.items()))


def schema_text(chart: str) -> str:
    """Returns the file as it should be."""
    content = json.loads((CHARTS / chart / "values.schema.json").read_text())
    return json.dumps({**content, "$defs": definitions(chart)}, indent=2) + "\n"


def _without_titles(node: Any) -> Any:
    """Leaves out what pydantic makes of names, and keeps fields that are called `title`."""
    if isinstance(node, list):
        return [_without_titles(each) for each in node]
    if isinstance(node, dict):
        return {
            name: _without_titles(each)
            for name, each in node.items()
            if name != "title" or not isinstance(each, str)
        }
    return node


if __name__ == "__main__":
    for name in OWN_FIELDS:
        (CHARTS / name / "values.schema.json").write_text(schema_text(name))
