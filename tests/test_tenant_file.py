"""The file of tenants, the commands that write it and the gate that reads it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from services.teacher.gate import AccessDeniedError, Gate
from services.teacher.tenant_cli import app
from services.teacher.tenants import Tenant, TenantKey, Tenants, new_key

if TYPE_CHECKING:
    from pathlib import Path


def invoke(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done.stdout.strip() if code == 0 else done.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tenants.yaml"


def bearer(token: str) -> list[tuple[str, str]]:
    return [("user-agent", "x"), ("authorization", f"Bearer {token}")]


class Clock:
    """A clock that is set by hand; a gate looks at its file at most once a second."""

    def __init__(self) -> None:
        self.now_s = datetime.now(UTC).timestamp()

    def __call__(self) -> float:
        self.now_s += 2
        return self.now_s


def test_a_token_lets_its_team_in_and_nothing_else_does(file: Path) -> None:
    support, sales = invoke("add", file, "support"), invoke("add", file, "sales", "--max-conversations", 3)
    gate = Gate(file)
    assert gate.admit(bearer(support)).tenant == "support"
    assert gate.admit(bearer(sales)).max_conversations == 3
    secret = support.partition(".")[2]
    wrong = [
        "",
        "support",
        "support.",
        f"sales.{secret}",
        f"nobody.{secret}",
        support[:-1],
        support + "x",
        secret,
    ]
    for token in wrong:
        with pytest.raises(AccessDeniedError) as told:
            gate.admit(bearer(token))
        assert secret[:8] not in str(told.value)
    for metadata in (None, [], bearer(support) + bearer(support), [("authorization", f"Basic {support}")]):
        with pytest.raises(AccessDeniedError, match="authorization: got none, expected `Bearer TOKEN`"):
            gate.admit(metadata)


def test_secrets_are_long_and_only_their_salted_digests_are_kept(file: Path) -> None:
    tokens = [invoke("add", file, f"team-{number}") for number in range(8)]
    secrets = {token.partition(".")[2] for token in tokens}
    assert len(secrets) == 8
    assert all(len(secret) >= 43 for secret in secrets)  # 256 bits in base64
    text = file.read_text()
    assert not any(secret in text for secret in secrets)
    keys = [tenant.keys[0] for tenant in Tenants.load(file).tenants.values()]
    assert len({key.salt for key in keys}) == 8
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_rotated_token_ends_after_a_while_and_a_revoked_one_at_once(file: Path) -> None:
    clock = Clock()
    first = invoke("add", file, "support")
    gate = Gate(file, clock=clock)
    shown = gate.admit(bearer(first))
    second = invoke("rotate", file, "support", "--keep-hours", 1)
    assert gate.admit(bearer(second)).tenant == "support"
    assert gate.admit(bearer(first)) == shown
    assert gate.allows(shown)
    clock.now_s += 3600
    assert not gate.allows(shown)
    with pytest.raises(AccessDeniedError, match="not known, or not any more"):
        gate.admit(bearer(first))
    newer = gate.admit(bearer(second))
    third = invoke("rotate", file, "support", "--keep-hours", 0)
    assert not gate.allows(newer)
    assert gate.allows(gate.admit(bearer(third)))
    invoke("revoke", file, "support")
    with pytest.raises(AccessDeniedError):
        gate.admit(bearer(third))
    assert gate.admit(bearer(invoke("rotate", file, "support"))).tenant == "support"


def test_a_team_expires(file: Path) -> None:
    clock = Clock()
    token = invoke("add", file, "support", "--days", 1)
    gate = Gate(file, clock=clock)
    shown = gate.admit(bearer(token))
    clock.now_s += 25 * 3600
    assert not gate.allows(shown)
    with pytest.raises(AccessDeniedError):
        gate.admit(bearer(token))


def test_a_file_that_is_broken_for_a_while_changes_nothing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = invoke("add", file, "support")
    clock = Clock()
    gate = Gate(file, clock=clock)
    shown = gate.admit(bearer(token))
    good = file.read_text()
    for text in ("tenants: [", "tenants: {support: {colour: red}}", "", "tenants: {'': {keys: []}}"):
        file.write_text(text)
        assert gate.allows(shown)
        assert gate.admit(bearer(token)) == shown
    assert "the tenants stay what they were" in caplog.text
    file.unlink()
    assert gate.allows(shown)
    clock.now_s += 400
    assert not gate.allows(shown)  # nobody knows any more what it would say
    with pytest.raises(AccessDeniedError):
        gate.admit(bearer(token))
    file.write_text(good)
    assert gate.allows(shown)
    file.write_text(good.replace("support", "renamed"))
    assert not gate.allows(shown)


def test_a_file_that_was_away_counts_again_when_it_is_back(file: Path) -> None:
    token = invoke("add", file, "support")
    clock = Clock()
    gate = Gate(file, clock=clock)
    shown = gate.admit(bearer(token))
    away = file.rename(file.with_name("away.yaml"))
    assert gate.allows(shown)
    clock.now_s += 400
    assert not gate.allows(shown)
    away.rename(file)  # the very same file
    assert gate.allows(shown)
    assert gate.admit(bearer(token)) == shown


def test_the_commands_teach_and_refuse(file: Path) -> None:
    invoke("add", file, "support", "--days", 2, "--max-conversations", 4)
    assert "is there already" in invoke("add", file, "support", code=2)
    assert "expected small letters" in invoke("add", file, "Sales Team", code=2)
    assert "expected one of support" in invoke("revoke", file, "sales", code=2)
    assert "can't be read" in invoke("list", file.with_name("missing.yaml"), code=2)
    (facts,) = json.loads(invoke("list", file, "--json"))
    assert (facts["name"], facts["tokens"], facts["max_conversations"]) == ("support", 1, 4)
    assert CliRunner().invoke(app, ["list", str(file)]).exit_code == 0


def test_expiries_have_a_time_zone() -> None:
    key = new_key("a")[1]
    with pytest.raises(ValueError, match=r"timezone"):
        Tenant(keys=(key,), expires=datetime(2030, 1, 1))  # noqa: DTZ001
    assert TenantKey.model_validate(key.model_dump(mode="json")) == key
    assert Tenant(keys=(), expires=datetime.now(UTC) + timedelta(days=1)).keys == ()


def test_a_changed_file_stays_where_and_whose_it_is(file: Path) -> None:
    invoke("add", file, "support")
    file.chmod(0o640)
    link = file.with_name("link.yaml")
    link.symlink_to(file)
    invoke("rotate", link, "support")
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert len(Tenants.load(file).tenants["support"].keys) == 2
    assert not list(file.parent.glob(".tenants.yaml.*.part"))
    assert [each.name for each in file.parent.glob(".*.lock")] == [".tenants.yaml.lock"]  # one for both names


@pytest.mark.parametrize("name", ["tenants.yaml", "ten[a].yaml"])
def test_what_a_killed_writer_left_is_in_nobodys_way_and_goes_with_the_next_command(
    tmp_path: Path, name: str
) -> None:
    file, link, other = tmp_path / name, tmp_path / "link.yaml", tmp_path / f".other-{name}.1.part"
    invoke("add", file, "support")
    link.symlink_to(file)
    other.touch()
    lines = [
        "import os, signal, sys",
        "from pathlib import Path",
        "from services.teacher.tenants import Tenants",
        "def kill(event, _):",
        "    if event == 'os.rename':",
        "        os.kill(os.getpid(), signal.SIGKILL)",
        "sys.addaudithook(kill)",
        "Tenants(tenants={}).save(Path(sys.argv[1]))",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(file)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    (left,) = set(tmp_path.glob("*.part")) - {other}
    # In a container every writer is process 1.
    left.rename(file.with_name(f".{name}.{os.getpid()}.part"))
    Tenants.load(file).save(file)
    invoke("rotate", link, "support")
    assert set(tmp_path.iterdir()) == {file, link, other, file.with_name(f".{name}.lock")}
    assert set(Tenants.load(file).tenants) == {"support"}


def test_commands_at_the_same_time_undo_nothing(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: invoke_process("add", file, f"team-{number}"), range(8)))
    assert set(Tenants.load(file).tenants) == {f"team-{number}" for number in range(8)}


def invoke_process(*words: object) -> None:
    code = "from services.teacher.tenant_cli import app; app()"
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, capture_output=True)
