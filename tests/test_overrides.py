"""What stands in a shell beside a run's config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from student_client.config import TrainConfig
from student_client.options import TlsOptions

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_relative_paths_of_overrides_start_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    path = there / "run.yaml"
    path.write_text(
        "name: run\nteacher: {address: 'preceptors://a:1', options: {tls: {ca_file: ca.pem}}}\n"
        "student: {factory: 'a:b', kwargs: {width: 4}}\n"
        "data: {train: t.csv, task: regression, label: y, features: {x: float32}}\n"
    )
    monkeypatch.chdir(here)
    overrides = {
        "data.train": "u.csv",
        "python_path": ["code"],
        "student.kwargs": {},
        "teacher.options.token_file": "a.token",
        "teacher.options.tls.certificate_file": "a.crt",
        "teacher.options.tls.key_file": tmp_path / "a.key",
    }
    config = TrainConfig.load(path, overrides)
    assert (config.data.train, config.python_path) == (str(here / "u.csv"), (here / "code",))
    assert config.student.kwargs == {}
    assert config.teacher is not None
    assert config.teacher.options.token_file == here / "a.token"
    tls = {"ca_file": there / "ca.pem", "certificate_file": here / "a.crt", "key_file": tmp_path / "a.key"}
    assert config.teacher.options.tls == TlsOptions(**tls)


def test_a_config_that_is_built_in_code_has_paths_that_hold_in_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from student_client.train import _resolved  # noqa: PLC0415 - it brings Ray

    monkeypatch.chdir(tmp_path)
    options = {"token_file": "a.token", "tls": {"ca_file": "ca.pem", "server_name": "a"}}
    fields = {
        "name": "run",
        "teacher": {"address": "preceptors://a:1", "options": options},
        "student": {"factory": "a:b"},
        "data": {"task": "regression", "features": {"x": "float32"}},
    }
    teacher = _resolved(TrainConfig.model_validate(fields)).teacher
    assert teacher is not None
    assert teacher.options.token_file == tmp_path / "a.token"
    assert teacher.options.tls == TlsOptions(ca_file=tmp_path / "ca.pem", server_name="a")
