"""An etcd that answers late is slow, and no more: whoever leads goes on leading, and what changes is written."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from testbed.conditions import free_port, wait_until
from tests.e2e.conftest import Scene

pytestmark = pytest.mark.faults
LATE_SECONDS = 3.0  # more than a third of a leader's time to live, in which a renewal is to be answered


class SlowServer:
    """Stands before a server, all of whose answers are late by `seconds`."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream, self._port, self.seconds = (host, int(port)), free_port(), 0.0
        self.address = f"127.0.0.1:{self._port}"
        self._writers: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection(*self._upstream)
        self._writers += [questions, writer]
        await asyncio.gather(_forward(reader, questions), self._delay(answers, writer))

    async def _delay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while chunk := await _read(reader):
            loop.call_later(self.seconds, writer.write, chunk)
        loop.call_later(self.seconds, writer.close)

    def close(self) -> None:
        """End all connections and the thread."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()


async def _read(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionError):
        return await reader.read(65536)
    return b""


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await _read(reader):
        writer.write(chunk)
    writer.close()


@pytest.fixture
def slow(scene: Scene) -> Iterator[SlowServer]:
    made = SlowServer(scene.etcd.endpoints)
    yield made
    scene.close()
    made.close()


def test_a_slow_etcd_keeps_its_leader_and_is_written_to(scene: Scene, slow: SlowServer) -> None:
    scene.start(etcd=slow.address).wait_leading()
    scene.apply()
    pods = [scene.pod() for _ in range(2)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    slow.seconds = LATE_SECONDS
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 4 * LATE_SECONDS, "the leader's lease has been renewed slowly")
    for _ in range(3):
        scene.kubelet.unready(pods[0])
        scene.registry.wait_addresses(pods[1].address)
        scene.kubelet.ready(pods[0])
        scene.registry.wait_addresses(*(pod.address for pod in pods))
