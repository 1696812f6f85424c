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

from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from services.teacher.environment import serve_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.teacher.config import ServiceConfig

__all__ = ["ServeError", "address_of", "serving", "wait_until_ready"]


class ServeError(RuntimeError):
    """The service could not be started; the message says what to do."""


def address_of(config: ServiceConfig) -> str:
    """Returns the address that students use."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    ports = range(config.port, config.port + config.num_replicas)
    return "preceptor://" + ",".join(f"{host}:{port}" for port in ports)


@contextlib.contextmanager
def serving(config: ServiceConfig, *, num_cpus: int = 8, ready_timeout_s: float = 180.0) -> Iterator[str]:
    """Serves a teacher while open, in a Ray that is started if there is none, and yields its address.

    Args:
        config: the operator's.
        num_cpus: logical CPUs of a Ray that is started here.
        ready_timeout_s: seconds until every replica must answer.

    Raises:
        ServeError: a port is taken, or the service does not come up.
    """
    _check_ports_free(config)
    os.environ.update(serve_environment(config))
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from services.teacher.app import APP_NAME, SERVICER_FUNCTIONS, build_app

    owns_ray = not ray.is_initialized()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if owns_ray:
        _start_ray(num_cpus)
    try:
        serve.start(
            # Direct ingress brings a proxy whatever is asked for; it gets a port that disturbs no one.
            http_options={"host": "127.0.0.1", "port": _free_port()},
            grpc_options={"grpc_servicer_functions": SERVICER_FUNCTIONS, "enable_reflection": False},
        )
        try:
            serve.run(build_app(config), name=APP_NAME, route_prefix=None)
        except RuntimeError:
            raise ServeError(f"the teacher did not start: {_reason()}") from None
        wait_until_ready(config, ready_timeout_s)
        yield address_of(config)
    finally:
        # Not `serve.shutdown`: other applications may run there, and with our own Ray the rest goes too.
        try:
            with contextlib.suppress(RayServeException):  # Serve did not start: the cause is coming
                serve.delete(APP_NAME)
        finally:
            if owns_ray:
                ray.shutdown()


def _reason() -> str:
    """Returns what Serve says of the deployments that are not healthy, without ANSI colours."""
    from ray import serve

    messages = [
        f"{name}: {deployment.message}"
        for application in serve.status().applications.values()
        for name, deployment in application.deployments.items()
        if deployment.status != "HEALTHY"
    ]
    return re.sub(r"\x1b\[[0-9;]*m", "", "; ".join(messages)) or "Serve's log has the reason"


def _start_ray(num_cpus: int) -> None:
    import ray

    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _check_ports_free(config: ServiceConfig) -> None:
    for port in range(config.port, config.port + config.num_replicas):
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.host, port))
            except OSError as error:
                raise ServeError(
                    f"port: can't listen on {config.host}:{port} ({error.strerror}); choose another one"
                ) from None


def wait_until_ready(config: ServiceConfig, timeout_s: float) -> None:
    """Waits until every replica describes its teacher.

    Raises:
        ServeError: one does not in time; names it.
    """
    deadline_s = time.monotonic() + timeout_s
    for target in address_of(config).removeprefix("preceptor://").split(","):
        with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = TeacherServiceStub(channel)  # type: ignore[no-untyped-call]
            remaining_s = max(deadline_s - time.monotonic(), 1.0)
            try:
                stub.DescribeTeacher(pb.DescribeTeacherRequest(), timeout=remaining_s, wait_for_ready=True)
            except grpc.RpcError as error:
                raise ServeError(
                    f"replica {target} did not answer within {timeout_s:g} s ({error.code().name}); was this "
                    "Ray started with RAY_SERVE_ENABLE_DIRECT_INGRESS=1 and the rest of docs/serve.md?"
                ) from None
