"""A teacher with a console, three teams that train against it, and what one of them is refused."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from benchmarks.bare_server import bare_server
from benchmarks.teachers import free_port, module
from preceptor.codec import CodecSpec, TeacherCodec
from preceptor.v1 import teacher_pb2
from services.teacher.config import ServiceConfig
from services.teacher.tenants import Tenant, Tenants, new_key
from tests.toy_frames import close, exchange, opening, set_codec
from tests.toy_server import RawStudent
from tests.toy_team import team

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Service", "served_console"]

TEAMS = {"search": (16, 0.02, 2.0), "ads": (8, 0.02, 1.0), "support": (4, 0.1, 1.0)}
SPEC = CodecSpec(message_dim=3, message_len=2)
HIDDEN = 32


@dataclass(frozen=True)
class Service:
    """Where the console is, whom it lets in, and where students go."""

    url: str
    tokens: dict[str, str]
    address: str


@contextlib.contextmanager
def served_console(folder: Path, wait_s: float = 0) -> Iterator[Service]:
    """A bare server with a console, and three teams that train."""
    weights = {**{name: weight for name, (_, _, weight) in TEAMS.items()}, "platform": 1.0}
    keys = {name: new_key(name) for name in weights}
    Tenants(
        tenants={
            name: Tenant(keys=(key,), weight=weights[name], operator=name == "platform")
            for name, (_, key) in keys.items()
        }
    ).save(folder / "tenants.yaml")
    fields = module(free_port(), folder).model_dump()
    fields |= {"auth": "tokens", "tenants": folder / "tenants.yaml", "console": {"port": free_port()}}
    config = ServiceConfig.model_validate(fields)
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(bare_server(config, folder))
        for name, (num_rows, pause_s, _) in TEAMS.items():
            token_file = folder / f"{name}.token"
            token_file.write_text(keys[name][0])
            stack.enter_context(team(address, token_file, num_rows, pause_s))
        assert config.console is not None
        url = f"http://127.0.0.1:{config.console.port}/"
        time.sleep(wait_s)
        _say_nan(address, keys["ads"][0])
        yield Service(url, {name: token for name, (token, _) in keys.items()}, address)


def _say_nan(address: str, token: str) -> None:
    """Sends a message of a student that diverged, three times."""
    turn = exchange(1, torch.full((2, 2, 3), torch.nan))
    codec = set_codec(1, dict(TeacherCodec(SPEC, HIDDEN).state_dict()))
    with RawStudent(address, [("authorization", f"Bearer {token}")]) as student:
        student.send(opening(SPEC), codec, turn, turn, turn, close())
        failed = [answer for answer in student.rest() if answer.HasField("failed")]
    assert [answer.failed.reason for answer in failed] == 3 * [teacher_pb2.REASON_NOT_FINITE]
