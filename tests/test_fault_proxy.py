"""What the proxy says of its faults."""

from __future__ import annotations

import socket

from benchmarks.fault_proxy import FaultProxy
from benchmarks.faults import Fault


def test_a_fault_is_not_taken_for_another_that_has_struck() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with FaultProxy(f"127.0.0.1:{port}") as proxy:
            refusal, reset_of_nobody = proxy.strike(Fault.REFUSE), proxy.strike(Fault.RESET)
            proxy.heal()
            armed = proxy.strike(Fault.CUT, after_bytes=3)
            assert [each.wait(0) for each in (refusal, reset_of_nobody, armed)] == [True, False, False]
            host, _, proxy_port = proxy.address.rpartition(":")
            with socket.create_connection((host, int(proxy_port))) as connection:
                connection.sendall(b"four")
                assert armed.wait()
    assert armed.struck_s is not None
    assert refusal.struck_s is not None
    assert armed.struck_s > refusal.struck_s


def test_a_fault_that_was_healed_before_its_bytes_came_never_strikes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with FaultProxy(f"127.0.0.1:{port}") as proxy:
            forgotten = proxy.strike(Fault.CUT, after_bytes=1)
            proxy.heal()
            later = proxy.strike(Fault.CUT, after_bytes=3)
            host, _, proxy_port = proxy.address.rpartition(":")
            with socket.create_connection((host, int(proxy_port))) as connection:
                connection.sendall(b"four")
                assert later.wait()
    assert forgotten.struck_s is None
