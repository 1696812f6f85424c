"""What `preceptor tenant` refuses before it writes, what it says of teams, and where tokens go."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from preceptor.settings import problems
from services.teacher.gate import Gate
from services.teacher.tenants import Tenant, Tenants, new_key
from tests.test_tenant_file import bearer, file, invoke

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["file"]

NO_NUMBERS = ("inf", "-inf", "nan", "1e308", "1e30", "0", "-1", "")
OPTIONS = ("--days", "--max-conversations", "--tokens-per-s", "--max-queued-tokens", "--weight")


def states_of(file: Path) -> dict[str, tuple[str, int]]:
    return {
        each["name"]: (each["state"], each["tokens"]) for each in json.loads(invoke("list", file, "--json"))
    }


def expire(file: Path, name: str) -> None:
    """Has a team end an hour ago, as if it had been given its days then."""
    tenants = Tenants.load(file)
    old = tenants.tenants[name]
    ended = old.model_copy(update={"expires": datetime.now(UTC) - timedelta(hours=1)})
    tenants.changed(name, ended).save(file)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_number_that_is_none_changes_nothing(file: Path, option: str, value: str) -> None:
    invoke("add", file, "support")
    before = file.read_bytes()
    for words in (("change", file, "support"), ("add", file, "sales")):
        assert option in invoke(*words, f"{option}={value}", code=2)
    assert file.read_bytes() == before
    Tenants.load(file)


@pytest.mark.parametrize("value", ["inf", "nan", "1e12", "-1"])
def test_tokens_that_would_stay_good_for_no_number_of_hours_are_refused(file: Path, value: str) -> None:
    invoke("add", file, "support")
    assert "--keep-hours" in invoke("rotate", file, "support", f"--keep-hours={value}", code=2)
    assert states_of(file) == {"support": ("good", 1)}


def test_a_teacher_without_a_name_is_refused(file: Path) -> None:
    invoke("add", file, "support")
    for words in (("change", file, "support"), ("add", file, "sales")):
        assert "teachers.0: " in invoke(*words, "--teacher", "", code=2)
    assert Tenants.load(file).tenants["support"].teachers is None


@pytest.mark.parametrize("field", ["weight", "tokens_per_s"])
def test_a_team_that_could_not_be_read_again_is_not_written(file: Path, field: str) -> None:
    tenant = Tenant(keys=()).model_copy(update={field: float("inf")})
    with pytest.raises(ValidationError, match=field):
        Tenants(tenants={}).changed("support", tenant).save(file)
    with pytest.raises(ValidationError, match=field):
        Tenant.model_validate({"keys": (), field: float("inf")})
    assert not file.exists()


def test_the_limits_of_a_revoked_team_are_not_forgotten(file: Path) -> None:
    invoke("add", file, "support", "--max-conversations", 3)
    invoke("revoke", file, "support")
    assert "is there, revoked; `rotate` gives it a token" in invoke("add", file, "support", code=2)
    token = invoke("rotate", file, "support")
    assert Gate(file).admit(bearer(token)).max_conversations == 3


def test_a_team_that_has_ended_gets_no_token_before_it_gets_days(file: Path) -> None:
    invoke("add", file, "support", "--days", 1)
    expire(file, "support")
    assert "support: ended 20" in invoke("rotate", file, "support", code=2)
    invoke("change", file, "support", "--days", 1)
    assert Gate(file).admit(bearer(invoke("rotate", file, "support"))).tenant == "support"


def test_the_list_says_whose_tokens_are_good(file: Path) -> None:
    for name in ("good", "ended", "revoked"):
        invoke("add", file, name)
    tenants, now = Tenants.load(file), datetime.now(UTC)
    rotated = [new_key("good")[1].model_copy(update={"expires": now - timedelta(hours=1)})]
    keys = (*tenants.tenants["good"].keys, *rotated)
    tenants.changed("good", Tenant(keys=keys)).save(file)
    expire(file, "ended")
    invoke("revoke", file, "revoked")
    assert states_of(file) == {"good": ("good", 1), "ended": ("expired", 0), "revoked": ("revoked", 0)}


def test_limits_are_taken_away_by_name(file: Path) -> None:
    limits: dict[str, Any] = {"max_conversations": 3, "tokens_per_s": 5, "max_queued_tokens": 7}
    words = [word for name, value in limits.items() for word in (f"--{name.replace('_', '-')}", value)]
    invoke("add", file, "support", *words, "--days", 2, "--teacher", "minilm", "--weight", 2)
    before = Tenants.load(file).tenants["support"]
    for name in (*limits, "teachers", "expires"):
        assert getattr(before, name) is not None
        invoke("change", file, "support", "--no-limit", name)
        after = Tenants.load(file).tenants["support"]
        assert after == before.model_copy(update={name: None})
        before = after
    assert (after.weight, len(after.keys)) == (2, 1)
    assert "expected one of them" in invoke(
        "change", file, "support", "--days", 1, "--no-limit", "expires", code=2
    )
    assert "--no-limit" in invoke("change", file, "support", "--no-limit", "weight", code=2)


def test_an_operator_is_one_until_that_is_taken_away(file: Path) -> None:
    token = invoke("add", file, "platform", "--operator")
    other = invoke("add", file, "support")
    gate = Gate(file)
    assert gate.admit(bearer(token)).operator
    assert not gate.admit(bearer(other)).operator
    assert {each["name"]: each["operator"] for each in json.loads(invoke("list", file, "--json"))} == {
        "platform": True,
        "support": False,
    }
    invoke("change", file, "platform", "--weight", 2)
    assert gate.admit(bearer(token)).operator
    invoke("change", file, "platform", "--no-operator")
    assert not gate.admit(bearer(token)).operator


def test_a_team_is_removed_once_it_has_no_good_token(file: Path) -> None:
    for name in ("support", "sales", "search"):
        invoke("add", file, name)
    assert "got 1 that are good, expected none" in invoke("remove", file, "support", code=2)
    invoke("revoke", file, "support")
    expire(file, "sales")
    invoke("remove", file, "support")
    invoke("remove", file, "sales")
    assert set(Tenants.load(file).tenants) == {"search"}
    invoke("add", file, "support")


def test_a_token_is_put_into_a_file_of_its_owner(file: Path) -> None:
    output = file.with_name("support.token")
    assert invoke("add", file, "support", "--output", output) == ""
    gate = Gate(file)
    assert gate.admit(bearer(output.read_text().strip())).tenant == "support"
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    first = output.read_text()
    output.chmod(0o644)
    invoke("rotate", file, "support", "--output", output, "--keep-hours", 0)
    assert output.read_text() != first
    assert gate.admit(bearer(output.read_text().strip())).tenant == "support"
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert not list(file.parent.glob(".*.part"))


def test_a_command_that_fails_leaves_the_token_that_was_there(file: Path) -> None:
    output = file.with_name("support.token")
    invoke("add", file, "support", "--output", output)
    before, tenants = output.read_text(), file.read_bytes()
    invoke("add", file, "support", "--output", output, code=2)
    invoke("rotate", file, "sales", "--output", output, code=2)
    for place in (file, file.parent):
        assert "expected a file for the token" in invoke("rotate", file, "support", "--output", place, code=2)
    missing = file.with_name("missing") / "support.token"
    assert "can't be written" in invoke("rotate", file, "support", "--output", missing, code=1)
    assert (output.read_text(), file.read_bytes()) == (before, tenants)
    assert not list(file.parent.glob(".*.part"))


@pytest.mark.parametrize("place", [".", "..", "/"])
def test_a_folder_is_no_file_of_tenants(place: str) -> None:
    assert "expected a file of tenants" in invoke("add", place, "support", code=2)


def test_a_mistake_in_the_file_is_told_by_field_and_without_values(file: Path) -> None:
    fields = {"tenants": {"support": {"keys": [{"salt": "secret", "digest": "secret"}], "weight": 0}}}
    with pytest.raises(ValidationError) as told:
        Tenants.model_validate(fields)
    said = problems(told.value)
    for field in ("keys.0.salt", "keys.0.digest", "weight"):
        assert f"tenants.support.{field}: " in said
    assert "secret" not in said
    file.write_text("tenants:\n  secret: [\n")
    with pytest.raises(ValueError, match=r"tenants\.yaml: not YAML: line 3, column 1: ") as broken:
        Tenants.load(file)
    assert "secret" not in str(broken.value)
    file.write_bytes(b"tenants: \xff")
    with pytest.raises(ValueError, match="not YAML: got a byte that is no UTF-8 at 9"):
        Tenants.load(file)


def test_what_a_killed_command_left_beside_a_token_file_is_in_no_way(file: Path) -> None:
    output = file.with_name("support.token")
    # As process 1 of a container, the next command has the same number.
    left = output.with_name(f".{output.name}.{os.getpid()}.part")
    left.touch()
    invoke("add", file, "support", "--output", output)
    assert Gate(file).admit(bearer(output.read_text().strip())).tenant == "support"
