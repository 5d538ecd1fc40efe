"""Stands in for the network between aiohttp and the model of the API server: HTTP/1.1 over connections in memory.

aiohttp is the real one, with its parser, pool, middlewares and time limits; only its connector does not open sockets.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import BaseConnector
from aiohttp.client_proto import ResponseHandler

from testbed.models.api_server import ApiServerModel, Reply, Watch, read_request
from testbed.models.wires import Pipe, Way, Wire

KEEPALIVE_SECONDS = 25.0  # TCP's questions notice after that long that the other end is gone (kube/connecting.py)
REASONS = {200: "OK", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 409: "Conflict", 410: "Gone"}
END = b"0\r\n\r\n"


class ModelConnector(BaseConnector):
    """Connects to a model through a wire, whatever the URL."""

    def __init__(self, server: ApiServerModel, wire: Wire) -> None:
        super().__init__(limit=0)
        self._server, self._wire = server, wire

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:  # noqa: ASYNC109  aiohttp's
        del traces
        await asyncio.sleep(self._wire.delay())
        if self._wire.way is Way.SILENT:
            await asyncio.sleep(timeout.sock_connect or 75.0)
            raise aiohttp.ConnectionTimeoutError("Connection timeout to host")
        if self._wire.way is Way.REFUSED:
            raise aiohttp.ClientConnectorError(req.connection_key, ConnectionRefusedError(111, "Connection refused"))
        protocol: ResponseHandler = self._factory()
        HttpConnection(self._server, self._wire, protocol)
        return protocol


class HttpConnection(asyncio.Transport):
    """One connection, both ends: the transport of the client's protocol, and the server that reads what it writes."""

    def __init__(self, server: ApiServerModel, wire: Wire, protocol: ResponseHandler) -> None:
        super().__init__()
        self._server, self._wire, self._protocol = server, wire, protocol
        self._loop = asyncio.get_running_loop()
        self._is_over = False
        self._received = b""
        self._watch: Watch | None = None
        self._guard: asyncio.TimerHandle | None = None
        self._to_server, self._to_client = Pipe(wire, self._read), Pipe(wire, _run)
        wire.join(self)
        protocol.connection_made(self)

    # The client's end

    def write(self, data: Any) -> None:
        """Send to the server."""
        if not self._is_over:
            self._to_server.send(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        """Send to the server."""
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        """Say whether it has ended."""
        return self._is_over

    def is_reading(self) -> bool:
        """Say that what comes is handed on: what the protocol would rather not have yet, it keeps."""
        return True

    def pause_reading(self) -> None:
        """Go on all the same: the protocol keeps what it cannot use yet."""

    def resume_reading(self) -> None:
        """Go on."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Say nothing of sockets."""
        del name
        return default

    def get_write_buffer_size(self) -> int:
        """Say that all has been sent."""
        return 0

    def close(self) -> None:
        """End it from the client's side."""
        self._finish(None)

    def abort(self) -> None:
        """End it from the client's side at once."""
        self._finish(None)

    # The wire's

    def on_broken(self) -> None:
        """End: the wire was cut."""
        self._finish(ConnectionResetError(104, "Connection reset by peer"))

    def on_silent(self) -> None:
        """Have the silence noticed, by TCP."""
        if self._guard is None:
            self._guard = self._loop.call_later(KEEPALIVE_SECONDS, self._look)

    def _look(self) -> None:
        self._guard = None
        if self._wire.is_cut_off:
            self._finish(TimeoutError(110, "Connection timed out"))

    def _finish(self, error: Exception | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._wire.leave(self)
        self._to_client.close()
        self._to_server.close()
        if self._guard:
            self._guard.cancel()
        if self._watch:
            self._loop.call_later(self._wire.delay(), self._watch.leave)
        self._loop.call_soon(self._protocol.connection_lost, error)

    # The server's end

    def _read(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self._received = rest[length:]
        method, target, _ = first.split(" ", 2)
        self._reply(self._server.answer(read_request(method, target, headers, rest[:length])))

    def _reply(self, reply: Reply) -> None:
        if self._server.ignores(reply):
            return
        headers = {"Content-Type": reply.content, **reply.headers}
        if reply.watch:
            headers["Transfer-Encoding"] = "chunked"
            self._say(_head(reply.status, headers))
            self._watch = reply.watch
            reply.watch.start(self._say_chunk, self._end_chunks)
        elif self._wire.loses_answer():
            self._say_end()
        else:
            headers["Content-Length"] = str(len(reply.body))
            self._say(_head(reply.status, headers) + reply.body)

    def _say(self, data: bytes, extra: float = 0.0) -> None:
        if not self._is_over:
            self._to_client.send(self._protocol.data_received, data, extra=extra)

    def _say_chunk(self, data: bytes) -> None:
        self._say(b"%x\r\n%b\r\n" % (len(data), data), self._wire.stream_delay)

    def _end_chunks(self) -> None:
        self._watch = None
        self._say(END)

    def _say_end(self) -> None:
        self._to_client.send(self._finish, ConnectionResetError(104, "Connection reset by peer"))


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {REASONS.get(status, 'Whatever')}\r\n{lines}\r\n".encode()


def _run(deliver: Callable[..., None], *message: object) -> None:
    deliver(*message)
