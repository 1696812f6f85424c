"""The dashboard's questions, asked of a Prometheus while students learn."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from deploy.dashboard import expressions
from deploy.dashboard_panels import VARIABLES
from student_client import InvalidMessageError, TeacherTalk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.toy_prometheus import Prometheus

__all__ = ["await_dashboard", "learning"]

_PATIENCE_S = 120.0
_GRAFANAS = {"$__rate_interval": "30s", "$__range": "5m", **{f"${name}": ".*" for name in VARIABLES}}


@contextmanager
def learning(address: str, *teams: str) -> Iterator[None]:
    """Has students of a `RowTeacher`, one for each team, learn while open; now and then they send NaN."""
    ends = threading.Event()
    threads = [threading.Thread(target=_learn, args=(address, team, ends)) for team in teams]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ends.set()
        for thread in threads:
            thread.join()


def _learn(address: str, team: str, ends: threading.Event) -> None:
    talk = TeacherTalk.connect(
        address, student_dim=6, message_dim=4, message_len=1, reading="add", tenant=team
    )
    inputs = {"ids": torch.arange(2)}
    while not ends.wait(0.1):
        talk(torch.randn(2, 6), inputs=inputs).decoded.square().mean().backward()
        with pytest.raises(InvalidMessageError):
            talk(torch.full((2, 6), torch.nan), inputs=inputs)
    talk.close()


def await_dashboard(server: Prometheus) -> dict[str, list[str]]:
    """Waits until every panel has data, then returns the choices that each variable offers."""
    deadline_s = time.monotonic() + _PATIENCE_S
    missing = [(title, _as_grafana(expr)) for title, expr in expressions()]
    while missing:
        assert time.monotonic() < deadline_s, f"no data: {missing}"
        missing = [(title, expr) for title, expr in missing if not _has_data(server.query(expr))]
        time.sleep(0.5)
    shares = server.query(_as_grafana(dict(expressions())["Share of compute by tenant"]))
    assert sum(float(each["value"][1]) for each in shares) == pytest.approx(1)
    return {name: server.values_of(label, _as_grafana(series)) for name, (series, label) in VARIABLES.items()}


def _as_grafana(expr: str) -> str:
    """Puts values in the places of Grafana's variables."""
    for name, value in _GRAFANAS.items():
        expr = expr.replace(name, value)
    return expr


def _has_data(series: list[dict[str, Any]]) -> bool:
    return any(each["value"][1] != "NaN" for each in series)
