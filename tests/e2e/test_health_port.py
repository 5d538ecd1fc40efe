"""The port of metrics and health is open to the whole cluster: nobody there may use up the operator."""

import socket
import sys
from contextlib import ExitStack, suppress

import pytest

from testbed.conditions import wait_until
from testbed.proxy import TcpProxy
from tests.e2e.conftest import Scene

MOST_FILES = 128
# A container's limit of open files is often no more than 1,024; a test is quicker with fewer.
PROGRAM = ("sh", "-c", f'ulimit -n {MOST_FILES} && exec "$0" -m grpc_etcd_operator "$@"', sys.executable)


@pytest.mark.parametrize("said", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 10], ids=len)
def test_connections_without_end_cost_nothing_else(scene: Scene, said: bytes) -> None:
    with ExitStack() as stack:
        proxy = stack.enter_context(TcpProxy.start(scene.etcd.endpoints))
        replica = scene.start(etcd=proxy.address, program=PROGRAM).wait_leading()
        stack.callback(scene.close)  # before the proxy
        scene.apply()
        first = scene.pod()
        scene.registry.wait_addresses(first.address)
        port = replica.lines("port_opened")[-1]["port"]
        for _ in range(2 * MOST_FILES):
            opened = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            opened.settimeout(0)
            with suppress(OSError):  # it may be gone already
                opened.send(said)
        assert replica.get("/healthz")[0] == 200
        proxy.cut()
        second = scene.pod()
        scene.registry.wait_addresses(first.address, second.address)
        wait_until(lambda: replica.get("/readyz")[0] == 200, "it is ready")
        assert replica.metric("grpc_etcd_leader", registry="default") == 1
