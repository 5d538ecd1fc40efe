"""A TCP proxy whose network can fail: cut, refuse, swallow, heal; or be slow.

It stands between a client and a real server, for faults that killing the server does not show: a connection that is
reset while the server lives, and one that stays open while nothing comes through. It runs in a thread of its own.

It accepts by itself: asyncio.Server, when it is closed, loses the sockets that it is just accepting, and does not know
of them, so that no cut reaches them.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from testbed.conditions import free_port

T = TypeVar("T")
CHUNK_BYTES = 65536
SLOW_CHUNK_BYTES = 8192
BACKLOG = 100  # as asyncio's
# Close by reset, as a firewall or a dead peer does, not by an orderly end of stream.
RESET = struct.pack("ii", 1, 0)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection at once, without sending what is left."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


class TcpProxy:
    """Forwards `address` to `upstream` (both host:port); its faults take effect before the call returns."""

    def __init__(self, upstream: str, bytes_per_second: int = 0) -> None:
        """Let each connection bring so many bytes to whoever has opened it; 0: as many as it can."""
        host, _, port = upstream.rpartition(":")
        self._bytes_per_second = bytes_per_second
        self._upstream = (host, int(port))
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._writers: set[asyncio.StreamWriter] = set()
        self._ending: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._arriving = self._cuts = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy {self.address}", daemon=True)
        self._thread.start()
        self._flowing = self._run(self._start())

    @classmethod
    def start(cls, upstream: str, *, bytes_per_second: int = 0) -> Self:
        """Start forwarding to an address."""
        return cls(upstream, bytes_per_second)

    def __repr__(self) -> str:
        return f"<TcpProxy {self.address} -> {self._upstream[0]}:{self._upstream[1]}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._writers) // 2

    def cut(self) -> None:
        """Reset every connection; new ones are accepted."""
        self._run(self._cut())

    def refuse(self) -> None:
        """Reset every connection and refuse new ones until heal()."""
        self._run(self._refuse())

    def black_hole(self) -> None:
        """Keep connections open and accept new ones, but let nothing through until heal()."""
        self._run(self._hold())

    def heal(self) -> None:
        """Forward again; what was held back by black_hole() arrives now, as it would by TCP's own repetition."""
        self._run(self._heal())

    def lead_to(self, upstream: str) -> None:
        """Forward new connections to another address, as a Service does; those that are open stay as they are."""
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))

    def close(self) -> None:
        """End all connections and the thread."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> asyncio.Event:
        self._listen()
        flowing = asyncio.Event()
        flowing.set()
        return flowing

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=BACKLOG)
        self._listener.setblocking(False)  # noqa: FBT003 (the socket module's own)
        self._loop.add_reader(self._listener, self._take, self._listener)

    def _take(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # whoever wanted to come may be gone
            arrived, _ = listener.accept()
            self._arriving += 1
            self._note(asyncio.ensure_future(self._accept(arrived, self._cuts)))

    async def _cut(self) -> None:
        self._cuts += 1
        for writer in tuple(self._writers):
            reset(writer)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)

    async def _refuse(self) -> None:
        if self._listener:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await self._cut()

    async def _hold(self) -> None:
        self._flowing.clear()

    async def _heal(self) -> None:
        self._flowing.set()
        if self._listener is None:
            self._listen()

    async def _close(self) -> None:
        await self._refuse()
        while self._arriving:  # noqa: ASYNC110 (a turn or two of the loop)
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in tuple(self._writers):
            self._drop(writer)
        for writer in self._ending:  # what a black hole has kept would never be sent
            writer.transport.abort()
        await asyncio.gather(*self._ending.values())

    async def _accept(self, arrived: socket.socket, cuts: int) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=arrived)
        finally:
            self._arriving -= 1
        self._writers.add(writer)
        if cuts != self._cuts:
            reset(writer)
            self._drop(writer)
            return
        try:
            there, back = await self._open()
        except OSError:
            self._drop(writer)
            return
        self._writers.add(back)
        for source, sink, rate in ((reader, back, 0), (there, writer, self._bytes_per_second)):
            self._note(asyncio.ensure_future(self._pump(source, sink, (writer, back), rate)))

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self._bytes_per_second:
            return await asyncio.open_connection(*self._upstream)
        opened = socket.socket()  # with little room: what waits there would come long after whoever asked has gone
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_CHUNK_BYTES)
        opened.setblocking(False)  # noqa: FBT003 (the socket module's own)
        await self._loop.sock_connect(opened, self._upstream)
        return await asyncio.open_connection(sock=opened, limit=SLOW_CHUNK_BYTES)

    def _note(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        if writer in self._writers:
            self._writers.discard(writer)
            self._ending[writer] = asyncio.ensure_future(self._see_off(writer))

    async def _see_off(self, writer: asyncio.StreamWriter) -> None:
        """Close a connection once all is sent that it still has to send."""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        del self._ending[writer]

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        both: tuple[asyncio.StreamWriter, ...],
        rate: int,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(SLOW_CHUNK_BYTES if rate else CHUNK_BYTES):
                if rate:
                    await asyncio.sleep(len(data) / rate)
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        for writer in both:
            self._drop(writer)
