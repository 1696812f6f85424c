"""The operator's config: read from YAML, paths resolved, mistakes named by field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from preceptor.settings import problems
from services.teacher.config import (
    DecoderConfig,
    EncoderConfig,
    LimitsConfig,
    ModuleConfig,
    ServiceConfig,
)
from services.teacher.environment import MAX_PORT_VARIABLE, MIN_PORT_VARIABLE, serve_environment

MODULE = {
    "family": "module",
    "factory": "shop.models:Ranker",
    "weights": "ranker.safetensors",
    "inputs": {"item": "int64[*]<100"},
}


def _load(folder: Path, text: str) -> ServiceConfig:
    path = folder / "teacher.yaml"
    path.write_text(text)
    return ServiceConfig.load(path, auth="none")


def test_an_empty_file_is_the_default_teacher(tmp_path: Path) -> None:
    config = _load(tmp_path, "")
    assert config == ServiceConfig(auth="none")
    assert isinstance(config.model, EncoderConfig)
    assert config.model.path.startswith("package:")


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = _load(tmp_path, yaml.safe_dump({"model": MODULE, "python_path": ["code", "/elsewhere"]}))
    assert isinstance(config.model, ModuleConfig)
    assert config.model.weights == tmp_path / "ranker.safetensors"
    assert config.python_path == (tmp_path / "code", Path("/elsewhere"))
    assert config.cache.folder is None
    assert _load(tmp_path, "cache: {folder: kept}").cache.folder == tmp_path / "kept"
    config = _load(tmp_path, "model: {family: decoder, path: llama, gguf_file: q8.gguf}")
    assert config.model == DecoderConfig(path=str(tmp_path / "llama"), gguf_file="q8.gguf")


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"prot": 1}, "prot"),
        ({"name": ""}, "name"),
        ({"port": 0}, "port"),
        ({"port": 65535}, "port: got 65535 for a directory and 1 replicas, expected none above 65535"),
        ({"port": 65533, "num_replicas": 3}, "port: got 65533 for a directory and 3 replicas, expected none"),
        ({"host": ""}, "got '', expected a host name or an IP address"),
        ({"host": "http://here"}, "got 'http://here', expected a host name"),
        ({"split_layer": -1}, "split_layer"),
        ({"dtype": "int8"}, "dtype"),
        ({"limits": {"max_frame_bytes": 10}}, "max_frame_bytes"),
        ({"limits": {"max_rows": 10}}, "max_rows"),
        ({"limits": {"credit_bytes": 100}}, "credit_bytes"),
        (
            {"limits": {"max_frame_bytes": 2**20, "credit_bytes": 2**21 - 1}},
            "credit_bytes: got 2097151, expected at least twice max_frame_bytes, 2097152",
        ),
        ({"engine": {"tenant_weights": {"a": 1.0, "b": 0.0}}}, "b: got 0.0, expected a positive number"),
        ({"engine": {"tenant_weights": {"a": -1.0}}}, "a: got -1.0, expected a positive number"),
        ({"engine": {"tenant_weights": {"a": float("nan")}}}, "a: got nan, expected a positive number"),
        ({"engine": {"tenant_weights": {"a": "much"}}}, "tenant_weights.a"),
        ({"engine": {"max_batch_tokens": 0}}, "max_batch_tokens"),
        ({"engine": {"max_wait_ms": -1}}, "max_wait_ms"),
        ({"engine": {"max_queued_turns": 8}}, "max_queued_turns"),
        ({"cache": {"max_bytes": -1}}, "max_bytes"),
        ({"cache": {"max_disk_bytes": 10}}, "max_disk_bytes"),
        ({"model": {"family": "oracle"}}, "oracle"),
        ({"model": {"family": "encoder", "gguf_file": "x"}}, "gguf_file"),
        ({"model": {**MODULE, "inputs": {"item": "int64[*]"}}}, "inputs.item: got integers without a bound"),
        ({"model": {key: MODULE[key] for key in ("family", "factory", "inputs")}}, "weights"),
    ],
)
def test_a_mistake_is_named_by_field(tmp_path: Path, fields: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fragment)):
        _load(tmp_path, yaml.safe_dump(fields))


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher\.yaml: not YAML: "):
        _load(tmp_path, "model: [")
    with pytest.raises(ValueError, match="got a list, expected fields"):
        _load(tmp_path, "- a list")
    with pytest.raises(FileNotFoundError):
        ServiceConfig.load(tmp_path / "nothing.yaml")


def test_how_turns_share_the_teacher_is_read_from_the_file(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        "engine: {max_batch_tokens: 64, max_retained_bytes: 0, tenant_weights: {rich: 3}}\n"
        "cache: {max_bytes: 0, shared: true}\n"
        "limits: {credit_bytes: 8192, max_frame_bytes: 4096, max_queued_tokens: 100}\n",
    )
    assert config.engine.tenant_weights == {"rich": 3.0}
    assert (config.engine.max_batch_tokens, config.engine.max_retained_bytes) == (64, 0)
    assert (config.cache.max_bytes, config.cache.shared) == (0, True)
    assert (config.limits.credit_bytes, config.limits.max_queued_tokens) == (8192, 100)


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({}, "tenants: got none, expected a file of `preceptor tenant`, or `auth: none`: whoever is on this"),
        (
            {"tenants": "t.yaml", "auth": "none"},
            "tenants: got a file, and `auth: none`; expected one of them",
        ),
        ({"auth": "none", "host": "10.0.0.1", "insecure": True}, "auth: got none for host 10.0.0.1, which"),
        (
            {"auth": "none", "host": "::", "tls": {"certificate": "a", "key": "b"}},
            "auth: got none for host ::",
        ),
        ({"auth": "nobody"}, "auth"),
        (
            {"tenants": "t.yaml", "engine": {"tenant_weights": {"a": 2.0}}},
            "engine.tenant_weights: got some with `tenants`, expected weights in that file",
        ),
    ],
)
def test_nobody_talks_without_a_token_unless_the_operator_says_so(
    fields: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(fragment)):
        ServiceConfig.model_validate(fields)
    assert ServiceConfig(tenants=Path("t.yaml"), host="10.0.0.1", insecure=True).auth == "tokens"


@pytest.mark.parametrize("auth", ["none", "tokens"])
def test_who_serves_other_machines_without_tokens_is_told_what_helps_and_nothing_else(auth: str) -> None:
    with pytest.raises(ValidationError) as told:
        ServiceConfig.model_validate({"host": "10.0.0.1", "auth": auth})
    said = problems(told.value)
    assert said.startswith(("auth: got none for host 10.0.0.1", "tenants: got none"))
    assert "expected a file of `preceptor tenant`" in said
    assert "insecure" not in said
    assert "`auth: none`" not in said


def test_what_is_wrong_is_told_without_the_validators_own_words() -> None:
    with pytest.raises(ValidationError) as told:
        ServiceConfig.model_validate({"limits": {"credit_bytes": 2**14}, "host": ""})
    assert [each.partition(" got ")[0] for each in problems(told.value).split("; ")] == [
        "host:",
        "limits: credit_bytes:",
    ]


def test_a_config_can_not_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ServiceConfig(auth="none").port = 1  # type: ignore[misc]


def test_rays_environment_follows_the_config() -> None:
    limits = LimitsConfig(max_frame_bytes=1 << 20)
    environment = serve_environment(ServiceConfig(auth="none", port=40000, num_replicas=3, limits=limits))
    assert int(environment[MIN_PORT_VARIABLE]) == 40001  # 40000 is the directory's
    assert int(environment[MAX_PORT_VARIABLE]) > 40003
    assert int(environment["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"]) > 1 << 20
    assert all(isinstance(value, str) for value in environment.values())
