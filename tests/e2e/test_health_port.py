"""The port of metrics and health is open to the whole cluster: nobody there may use up the operator."""

import asyncio
import itertools
import socket
import sys
import time
from contextlib import ExitStack, suppress

import aiohttp
import pytest

from grpc_etcd_operator.telemetry.health import METRICS_SHARE, MOST_CONNECTIONS, serve
from testbed.conditions import PATIENCE_SECONDS, wait_until
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
        assert replica.metric("grpc_etcd_operator_leader", registry="default") == 1


async def test_connections_without_end_take_none_from_who_comes_from_elsewhere() -> None:
    runner = await serve(0, lambda: None, lambda: None, lambda: b"")
    opened: list[asyncio.StreamWriter] = []
    try:
        port = runner.addresses[0][1]
        reader, kubelet = await asyncio.open_connection("127.0.0.1", port)
        opened.append(kubelet)
        for _ in range(3 * MOST_CONNECTIONS):
            other = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
            opened.append(other[1])
        kubelet.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    finally:
        for each in opened:
            each.close()
        await runner.cleanup()


async def test_metrics_take_little_of_the_time_however_often_they_are_asked_for() -> None:
    work_seconds, ended = 0.02, list[float]()

    def make() -> bytes:
        until = time.monotonic() + work_seconds
        while time.monotonic() < until:
            pass
        ended.append(time.monotonic())
        return f"made {len(ended)}\n".encode()

    runner = await serve(0, lambda: None, lambda: None, make)
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
        async with aiohttp.ClientSession() as session:
            said = [await _ask(session, url)]
            while len(ended) < 3:  # whoever asks and asks gets newer ones all the same
                said.append(await _ask(session, url))
    finally:
        await runner.cleanup()
    assert said[-1] == "made 3\n"
    assert all(after - before > METRICS_SHARE * work_seconds for before, after in itertools.pairwise(ended))


async def _ask(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as answer:
        return await answer.text()
