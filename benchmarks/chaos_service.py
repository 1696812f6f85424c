"""The service of `benchmarks.chaos`: two replicas on Ray Serve, and a fault proxy before every port."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from unittest import mock

import psutil

from benchmarks import teachers
from benchmarks.certificates import Authority
from benchmarks.fault_proxy import FaultProxy
from services.teacher.config import ServiceConfig, TlsConfig
from services.teacher.environment import replica_ports, serve_environment
from services.teacher.local import serving
from services.teacher.tenants import Tenant, Tenants, new_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["NUM_REPLICAS", "PROCESSES", "ChaosService", "chaos_service"]

# What the processes of Serve are called.
PROCESSES = {
    "replica": "ray::ServeReplica:preceptor:Teacher",
    "directory": "ray::ServeReplica:preceptor:Directory",
    "controller": "ray::ServeController",
    "serve proxy": "ray::ProxyActor",
}

NUM_REPLICAS = 2
_POLL_S = 0.1


@dataclass
class ChaosService:
    """A served teacher that is reached through proxies only.

    Attributes:
        address: of the proxy before its directory.
        ca_file: the authority of its certificate.
        tokens: the file with the token of each tenant.
        proxies: by the port where they listen.
    """

    address: str
    ca_file: Path
    tokens: dict[str, Path]
    config: ServiceConfig
    offset: int
    proxies: dict[int, FaultProxy] = field(default_factory=dict)

    def proxy_at(self, target: str) -> FaultProxy:
        """Returns the proxy that a student knows by HOST:PORT."""
        return self.proxies[int(target.rpartition(":")[2])]

    def replica_at(self, target: str) -> psutil.Process | None:
        """Returns the process of the replica behind that proxy, if there is one."""
        port = int(target.rpartition(":")[2]) - self.offset
        return next((psutil.Process(pid) for pid in self._listeners().get(port, ())), None)

    def processes(self, kind: str) -> list[psutil.Process]:
        """Returns the processes of one of `PROCESSES`."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                if " ".join(process.cmdline()).startswith(PROCESSES[kind]):
                    found.append(process)
        return found

    def num_replicas(self) -> int:
        """Returns how many replicas listen."""
        listeners = self._listeners()
        return sum(port in listeners for port in replica_ports(self.config))

    def await_whole(self, timeout_s: float) -> bool:
        """Waits until everything that was killed is back; returns whether it is."""
        return _await(self._is_whole, timeout_s)

    def await_replaced(self, old: Sequence[psutil.Process], timeout_s: float) -> bool:
        """Waits until none of these replicas is there, and everything else is; returns whether it is so."""
        return _await(lambda: set(old).isdisjoint(self.processes("replica")) and self._is_whole(), timeout_s)

    def heal(self) -> None:
        """Makes all of the network work again."""
        for proxy in self.proxies.values():
            proxy.heal()

    def _is_whole(self) -> bool:
        return self.num_replicas() >= NUM_REPLICAS and all(map(self.processes, PROCESSES))

    def _listeners(self) -> dict[int, list[int]]:
        """Returns the processes that listen on each port."""
        found: dict[int, list[int]] = {}
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.pid:
                found.setdefault(connection.laddr.port, []).append(connection.pid)
        return found


def _await(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Waits until a condition holds; returns whether it does."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        threading.Event().wait(_POLL_S)
    return False


@contextlib.contextmanager
def chaos_service(folder: Path, tenants: tuple[str, ...]) -> Iterator[ChaosService]:
    """Serves a teacher under TLS to some tenants while open, everything of it behind proxies."""
    authority = Authority(folder, "authority")
    certificate, key = authority.issue("server", "127.0.0.1")
    known, tokens = {}, {}
    for tenant in tenants:
        token, known_key = new_key(tenant)
        known[tenant] = Tenant(keys=(known_key,))
        tokens[tenant] = folder / f"{tenant}.token"
        tokens[tenant].write_text(token)
    Tenants(tenants=known).save(folder / "tenants.yaml")
    config = teachers.module(_free_base(), folder).model_copy(
        update={
            "num_replicas": NUM_REPLICAS,
            "num_cpus": 0.5,
            "tls": TlsConfig(certificate=certificate, key=key),
            "auth": "tokens",
            "tenants": folder / "tenants.yaml",
            "audit_log": folder / "audit.jsonl",
        }
    )
    os.environ.update(serve_environment(config))  # before Ray is imported
    from benchmarks.chaos_teacher import PROXY_OFFSET, ProxiedTeacher

    address = f"preceptors://127.0.0.1:{config.port + PROXY_OFFSET}"
    service = ChaosService(address, authority.ca_file, tokens, config, PROXY_OFFSET)
    with contextlib.ExitStack() as stack:
        for port in (config.port, *replica_ports(config)):
            proxy = FaultProxy(f"127.0.0.1:{port}", port + PROXY_OFFSET)
            service.proxies[port + PROXY_OFFSET] = stack.enter_context(proxy)
        stack.enter_context(mock.patch("services.teacher.app.TeacherDeployment", ProxiedTeacher))
        stack.enter_context(serving(config))
        yield service


def _free_base() -> int:
    """Returns a port with all those free after it that the service and its proxies take."""
    while True:
        base = teachers.free_port()
        with contextlib.suppress(OSError, OverflowError), contextlib.ExitStack() as stack:
            for port in range(base, base + 32):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return base
