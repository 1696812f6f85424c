"""Runs a teacher service on this machine (or on the Ray cluster this machine belongs to) until stopped.

The environment that direct ingress needs is set here, before Ray is imported anywhere in the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from typing import TYPE_CHECKING

import grpc

from preceptor.hosts import host_of
from preceptor.local_ray import connected_ray
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from services.teacher.environment import replica_ports, serve_environment, socket_address
from services.teacher.files import check_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.teacher.config import ServiceConfig

__all__ = ["ServeError", "address_of", "find_replicas", "reason_of", "serving", "wait_until_ready"]


_POLL_S = 0.1
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b(?!: Traceback)")
_MAX_REASON_LENGTH = 600


class ServeError(RuntimeError):
    """The service could not be started; the message says what to do."""


def address_of(config: ServiceConfig) -> str:
    """Returns the one address that students use."""
    scheme = "preceptor" if config.tls is None else "preceptors"
    return f"{scheme}://{socket_address(config.host, config.port)}"


@contextlib.contextmanager
def serving(
    config: ServiceConfig, *, num_cpus: int = 8, jobs: bool = False, ready_timeout_s: float = 180.0
) -> Iterator[str]:
    """Serves a teacher while open, in a Ray that is started if there is none, and yields its address.

    Args:
        config: the operator's.
        num_cpus: logical CPUs of a Ray that is started here.
        jobs: whether that Ray takes jobs too (Ray's dashboard); only for students that the operator trusts.
        ready_timeout_s: seconds until every replica must answer.

    Raises:
        FilesError: a file of the config is not what it should be.
        ServeError: a port is taken, or the service does not come up.
    """
    _check_ports_free(config)
    os.environ.update(serve_environment(config))
    if "RAY_ADDRESS" not in os.environ:  # else the replicas may be on other machines, with other files
        check_files(config)
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from services.teacher.app import APP_NAME, SERVICER_FUNCTIONS, build_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with connected_ray(num_cpus, jobs=jobs):
        serve.start(
            # Direct ingress brings a proxy whatever is asked for; it gets a port that disturbs no one.
            http_options={"host": "127.0.0.1", "port": _free_port()},
            grpc_options={"grpc_servicer_functions": SERVICER_FUNCTIONS, "enable_reflection": False},
        )
        try:
            try:
                serve.run(build_app(config), name=APP_NAME, route_prefix=None)
            except RuntimeError:
                raise ServeError(f"the teacher did not start: {_reason()}") from None
            if config.tls is None and config.tenants is None:
                wait_until_ready(config, ready_timeout_s)
            else:
                _wait_until_listening(config, ready_timeout_s)
            yield address_of(config)
        finally:
            # Not `serve.shutdown`: other applications may run there, and with our own Ray the rest goes too.
            with contextlib.suppress(RayServeException):  # Serve did not start: the cause is coming
                serve.delete(APP_NAME)


def _reason() -> str:
    """Returns why the deployments that are not healthy are not, as Serve knows it."""
    from ray import serve

    reasons = [
        f"{name}: {reason_of(deployment.message)}"
        for application in serve.status().applications.values()
        for name, deployment in application.deployments.items()
        if deployment.status != "HEALTHY"
    ]
    return "; ".join(reasons) or "Serve's log has the reason"


def reason_of(message: str) -> str:
    """Returns the error that Serve's message of a deployment ends with, in one line, with no traceback."""
    lines = [line for line in _COLOURS.sub("", message).splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    last = " ".join(line.strip() for line in lines[starts[-1] if starts else -1 :])
    return last if len(last) <= _MAX_REASON_LENGTH else f"{last[:_MAX_REASON_LENGTH]} ..."


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _check_ports_free(config: ServiceConfig) -> None:
    problem = _port_problem(config.host, config.port)
    if problem is not None:
        raise ServeError(f"port: can't listen on {config.host}:{config.port} ({problem}); choose another one")
    if config.console is not None:
        problem = _port_problem(config.host, config.console.port)
        if problem is not None:
            raise ServeError(
                f"console.port: can't listen on {config.host}:{config.console.port} ({problem}); "
                "choose another one"
            )
    ports = replica_ports(config)
    num_free = sum(_port_problem(config.host, port) is None for port in ports)
    if num_free < config.num_replicas:
        raise ServeError(
            f"port: got {num_free} free ports from {ports.start} to {ports.stop - 1}, expected "
            f"{config.num_replicas} for the replicas; choose another one"
        )


def _port_problem(host: str, port: int) -> str | None:
    """Returns why a port can't be listened on, or None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror
    return None


def wait_until_ready(config: ServiceConfig, timeout_s: float) -> None:
    """Waits until every replica is found at the service's address and describes its teacher.

    A server that knows of no other replicas is one itself.

    Raises:
        ServeError: one does not in time; names it.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        for target in find_replicas(config, timeout_s):
            with _stub(target) as stub:
                stub.DescribeTeacher(
                    pb.DescribeTeacherRequest(), timeout=_remaining_s(deadline_s), wait_for_ready=True
                )
    except grpc.RpcError as error:
        raise ServeError(
            f"{address_of(config)} did not answer within {timeout_s:g} s ({error.code().name}: "
            f"{error.details()}); was this Ray started with what `preceptor environment` prints?"
        ) from None


def _wait_until_listening(config: ServiceConfig, timeout_s: float) -> None:
    """Waits until directory and replicas listen, for a service that answers its students only.

    Raises:
        ServeError: one does not in time; names it.
    """
    from ray import serve

    from services.teacher.app import APP_NAME

    deadline_s = time.monotonic() + timeout_s
    directory = serve.get_deployment_handle("Directory", APP_NAME)
    replicas: list[str] = []
    while len(replicas) < config.num_replicas:
        if time.monotonic() > deadline_s:
            raise ServeError(
                f"{address_of(config)} knows of {len(replicas)} replicas, expected {config.num_replicas}"
            )
        replicas = directory.addresses.remote().result(timeout_s=_remaining_s(deadline_s))
        time.sleep(_POLL_S)
    for target in (socket_address(config.host, config.port), *replicas):
        port = int(target.rpartition(":")[2])
        try:
            socket.create_connection((host_of(target), port), _remaining_s(deadline_s)).close()
        except OSError as error:
            raise ServeError(f"{target} does not listen: {error.strerror or error}") from None


def find_replicas(config: ServiceConfig, timeout_s: float) -> list[str]:
    """Returns where the replicas are, `HOST:PORT` each, once there are as many as there should be.

    Raises:
        ServeError: there are fewer.
        grpc.RpcError: nobody answers.
    """
    deadline_s = time.monotonic() + timeout_s
    target = socket_address(config.host, config.port)
    with _stub(target) as stub:
        while True:
            found: list[str] = []
            try:
                response = stub.FindReplicas(
                    pb.FindReplicasRequest(), timeout=_remaining_s(deadline_s), wait_for_ready=True
                )
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline_s:
                    raise
            else:
                found = [replica.address for replica in response.replicas] or [target]
            if len(found) >= config.num_replicas:
                return found
            if time.monotonic() > deadline_s:
                raise ServeError(
                    f"{target} knows of {', '.join(found)}, expected {config.num_replicas} replicas"
                )
            time.sleep(_POLL_S)


@contextlib.contextmanager
def _stub(target: str) -> Iterator[TeacherServiceStub]:
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield TeacherServiceStub(channel)  # type: ignore[no-untyped-call]


def _remaining_s(deadline_s: float) -> float:
    return max(deadline_s - time.monotonic(), 1.0)
