"""What is wrong with the files of a service, told before Ray is started and in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from benchmarks.certificates import Authority
from services.teacher.files import FilesError, check_files
from services.teacher.local import reason_of, serving
from tests.test_cli import run
from tests.test_serve import free_port
from tests.test_tls import tls_of
from tests.toy_student import row_config

if TYPE_CHECKING:
    from pathlib import Path

# As Serve 2.60 has it, shorter.
FAILED = """The deployment failed to start 3 times in a row. See controller logs for details. Error:
\x1b[36mray::ServeReplica:preceptor:Teacher.initialize_and_get_metadata()\x1b[39m (pid=7, ip=127.0.0.1)
  File "serve/_private/replica.py", line 1, in initialize_and_get_metadata
    await self._replica_impl.initialize(deployment_config, rank)
RuntimeError: Traceback (most recent call last):
  File "module_parts.py", line 1, in load_state
    module.load_state_dict(load_file(path), strict=True)
RuntimeError: Error(s) in loading state_dict for RowTeacher:
\tMissing key(s)

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "module_parts.py", line 2, in load_state
    raise ValueError(...) from error
ValueError: model.weights: got rows.safetensors, expected the module's state: Error(s) in loading state_dict:
\tMissing key(s) in state_dict: "embed.table.weight".
"""


def test_the_files_of_a_good_config_are_good(tmp_path: Path) -> None:
    check_files(row_config(tmp_path, tls=tls_of(Authority(tmp_path, "authority"))))


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        (
            {"tenants": "none.yaml"},
            {},
            r"tenants: .*none\.yaml can't be read: No such file.*`preceptor tenant add",
        ),
        ({"tenants": "odd.yaml"}, {}, r"tenants: .*odd\.yaml: tenants: "),
        ({"tenants": "broken.yaml"}, {}, r"tenants: .*broken\.yaml: not YAML"),
        ({"tls": {"certificate": "a.crt", "key": "a.key"}}, {}, r"tls: .*a\.crt can't be read"),
        ({"audit_log": "nowhere/audit.jsonl"}, {}, r"audit_log: got .*nowhere/audit\.jsonl"),
        ({}, {"weights": "missing.safetensors"}, r"model\.weights: .*missing\.safetensors can't be read"),
        (
            {},
            {"factory": "nowhere:Model"},
            r"model\.factory: nowhere:Model can't be imported: ModuleNotFound",
        ),
        ({}, {"factory": "raising:Model"}, r"model\.factory: raising:Model .*ZeroDivisionError"),
        ({}, {"factory": "tests.toy_student:Nobody"}, r"model\.factory: .*expected a callable"),
    ],
)
def test_a_wrong_file_is_named_before_ray_starts(
    tmp_path: Path,
    changes: dict[str, Any],
    model: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "raising.py").write_text("1 / 0\n")
    (tmp_path / "odd.yaml").write_text("people: {}\n")
    (tmp_path / "broken.yaml").write_text("tenants: [\n")
    config = row_config(tmp_path, port=free_port(), python_path=[tmp_path], **changes)
    config = config.model_copy(update={"model": config.model.model_copy(update=model)}).resolved(tmp_path)
    with pytest.raises(FilesError, match=message), serving(config):
        pass


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = row_config(tmp_path)
    for path, message in (
        ("nowhere", "expected an existing folder"),
        ("package:no_such_one", "no installed"),
    ):
        model = {"family": "encoder", "path": path}
        fields = {**config.model_dump(exclude={"model"}), "model": model}
        with pytest.raises(FilesError, match=rf"model\.path: .*{message}"):
            check_files(type(config).model_validate(fields))


def test_the_command_says_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "teacher.yaml"
    path.write_text(yaml.safe_dump({"tenants": "tenants.yaml", "port": free_port()}))
    result = run("serve", str(path))
    assert result.exit_code == 2
    assert " ".join(result.stderr.split()).endswith(
        f"`preceptor tenant add {tmp_path}/tenants.yaml NAME` makes it"
    )


def test_of_serves_message_the_error_is_left() -> None:
    assert reason_of(FAILED) == (
        "ValueError: model.weights: got rows.safetensors, expected the module's state: Error(s) in loading "
        'state_dict: Missing key(s) in state_dict: "embed.table.weight".'
    )
    assert reason_of("waits for 1 CPU") == "waits for 1 CPU"
    assert reason_of("") == ""
    assert len(reason_of("ValueError: " + "x" * 5000)) < 700
