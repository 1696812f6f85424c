"""The console's page is what its sources say, and its config is checked."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from deploy import console as build
from preceptor import names
from services.teacher.config import ServiceConfig


def test_the_page_is_built_from_the_sources_as_they_are() -> None:
    assert build.DIGEST_FILE.read_text().strip() == build.source_digest(), "run `make console`"


def test_the_lock_file_names_versions_and_no_registry() -> None:
    lock = json.loads((build.SOURCES / "package-lock.json").read_text())
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert {"node_modules/preact", "node_modules/uplot", "node_modules/vite"} <= packages.keys()
    assert all("resolved" not in each and "integrity" in each for each in packages.values())
    wanted = json.loads((build.SOURCES / "package.json").read_text())
    for name, version in {**wanted["dependencies"], **wanted["devDependencies"]}.items():
        assert packages[f"node_modules/{name}"]["version"] == version


def test_the_licenses_of_what_is_in_the_page_go_with_it() -> None:
    text = (build.BUILT / "LICENSES.txt").read_text()
    assert [line for line in text.splitlines() if line in {"preact", "uplot"}] == ["preact", "uplot"]
    assert text.count("Permission is hereby granted") == 2


def test_the_page_has_the_services_names_for_those_that_are_no_tenants() -> None:
    named = re.findall(r'const (\w+) = "(\(.*\))";', (build.SOURCES / "src" / "figures.ts").read_text())
    assert dict(named) == {"OTHERS": names.OTHERS, "UNKNOWN": names.UNKNOWN}


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"console": {"port": 41503}}, "console.port: got 41503, expected none from 41500 to 41509"),
        ({"console": {"port": 41500}}, "console.port: got 41500"),
        ({"console": {"port": 0}}, "greater than or equal to 1"),
        ({"console": {"prot": 1}}, "prot"),
    ],
)
def test_a_console_that_is_in_the_way_is_named(fields: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fragment)):
        ServiceConfig.model_validate({"auth": "none", **fields})
