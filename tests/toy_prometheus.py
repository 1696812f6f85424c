"""A real Prometheus that scrapes what a test serves; tests that want one are skipped where there is none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from benchmarks.teachers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Prometheus", "prometheus"]

_START_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Prometheus:
    """Asks a Prometheus at http://HOST:PORT."""

    address: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Returns the series that an expression has now."""
        found: list[dict[str, Any]] = self._get("query", {"query": expr})["result"]
        return found

    def values_of(self, label: str, series: str) -> list[str]:
        """Returns what Grafana's `label_values(series, label)` would."""
        found: list[str] = self._get(f"label/{label}/values", {"match[]": series})
        return found

    def _get(self, path: str, arguments: dict[str, str]) -> Any:
        # A refusal is an HTTPError, whose body says why; pytest shows the arguments.
        url = f"{self.address}/api/v1/{path}?{urlencode(arguments)}"
        with urlopen(url, timeout=_ANSWER_TIMEOUT_S) as answer:  # noqa: S310 - ours, on loopback
            content = json.load(answer)
        assert content["status"] == "success", content
        return content["data"]


def _command() -> str:
    found = shutil.which("prometheus")
    if found is None:
        missing = "there is no command `prometheus` (Debian's package has it)"
        if os.environ.get("PRECEPTOR_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """Asks the Ray that this process is connected to each second while open.

    Skips the test where there is no Prometheus.
    """
    import ray  # noqa: PLC0415 - its environment is set first

    command = _command()
    targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    own = f"127.0.0.1:{free_port()}"
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    arguments = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={own}",
        "--log.level=warn",
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([command, *arguments], stdout=log, stderr=log) as process,
    ):
        try:
            found = Prometheus(f"http://{own}")
            _await_answer(found, process, folder / "log")
            yield found
        finally:
            process.kill()


def _await_answer(server: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            server.query("up")
        except URLError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.1)
        else:
            return
