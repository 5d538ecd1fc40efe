"""Stands in for the gRPC channel of asyncio between the etcd client and a model: calls, streams, and a network.

A channel has one connection at a time, dialled when it is needed. It ends when the wire is cut, and when nothing has
come through for as long as the client's pings would take to notice (endpoints.py).
"""

import asyncio
import random
from collections.abc import Callable, Generator, Iterable
from itertools import count
from typing import Any

import grpc
import grpc.aio

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.aio.connection import Connection as EtcdConnection
from grpc_etcd.etcd.credentials import Credentials
from grpc_etcd.etcd.dialing import Dialer, Facts
from grpc_etcd.etcd.errors import EtcdError
from testbed.models.etcd_server import EtcdModel
from testbed.models.wires import Pipe, Way, Wire

PING_SECONDS = (5.0, 15.0)  # after so long a silent connection has been noticed
NOT_CONNECTED = "failed to connect to all addresses; last error: UNKNOWN: ipv4: Failed to connect: Connection refused"
BROKEN = "recvmsg:Connection reset by peer"
SILENT = "ping timeout"
Fail = Callable[[str, str], None]
_numbers = count(1)


def open_etcd(
    server: EtcdModel, wire: Wire | None = None, *, user: str = "", password: str = "", timeout_seconds: float = 5.0
) -> Etcd:
    """Open the real client on a model, as through a wire."""
    etcd = Etcd.__new__(Etcd)
    dialer = ModelDialer(server, wire or Wire(server.wire, name="client"))
    etcd._set_up(EtcdConnection(dialer, Credentials(user, password), timeout_seconds), server.name)  # noqa: SLF001  its constructor
    return etcd


def make_error(code: str, words: str) -> grpc.aio.AioRpcError:
    """Return what grpcio raises."""
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode[code], nothing, nothing, words)


class ModelDialer(Dialer):
    """Dials a model whatever the target."""

    def __init__(self, server: EtcdModel, wire: Wire) -> None:
        super().__init__((f"{server.name}:2379",), None)
        object.__setattr__(self, "_reach", (server, wire))

    def aio_channel(self, target: str, facts: Facts) -> Any:
        """Make a channel."""
        del target, facts
        server, wire = self._reach  # type: ignore[attr-defined]  # of a frozen class
        return ModelChannel(server, wire)


class ModelChannel:
    """A channel."""

    def __init__(self, server: EtcdModel, wire: Wire) -> None:
        self.server, self.wire = server, wire
        self._connection: Connection | None = None
        self._is_closed = False

    def unary_unary(self, path: str, serialize: object, parse: object) -> Callable[..., "ModelCall"]:
        """Return what makes unary calls of a method."""
        del serialize, parse  # messages go as they are

        def call(request: Any, *, timeout: float, metadata: Iterable[tuple[str, str]] = ()) -> ModelCall:
            return ModelCall(self.connect(), path, request, timeout, dict(metadata).get("token", ""))

        return call

    def stream_stream(self, path: str, serialize: object, parse: object) -> Callable[..., "ModelStream"]:
        """Return what opens streams of a method."""
        del serialize, parse

        def open_stream(*, metadata: Iterable[tuple[str, str]] = ()) -> ModelStream:
            return ModelStream(self.connect(), path, dict(metadata).get("token", ""))

        return open_stream

    def connect(self) -> "Connection":
        """Return the connection, a new one where there is none."""
        if self._is_closed:
            raise grpc.aio.UsageError("Channel is closed.")
        if self._connection is None or self._connection.is_over:
            self._connection = Connection(self.server, self.wire)
        return self._connection

    async def close(self) -> None:
        """Close it; calls under way are cancelled."""
        self._is_closed = True
        if self._connection:
            self._connection.fail("CANCELLED", "Channel is closed.")


class Connection:
    """One connection: it fails as a whole, and all that is under way with it."""

    def __init__(self, server: EtcdModel, wire: Wire) -> None:
        self.server, self.wire = server, wire
        self.is_over = False
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[int, Fail] = {}
        self._to_server, self._to_client = Pipe(wire, _run), Pipe(wire, _run)
        self._guard: asyncio.TimerHandle | None = None
        self._check_way()
        wire.join(self)

    def start(self, fail: Fail) -> int:
        """Take note of a call or stream; `fail` is called when the connection ends before it does."""
        number = next(_numbers)
        self._under_way[number] = fail
        self._check_way()
        return number

    def end(self, number: int) -> None:
        """Take it that a call or stream is over."""
        self._under_way.pop(number, None)

    def to_server(self, deliver: Callable[..., None], *message: object) -> None:
        """Send a message to the server."""
        self._check_way()
        self._to_server.send(deliver, *message)

    def to_client(self, deliver: Callable[..., None], *message: object, extra: float = 0.0) -> None:
        """Send a message to the client, at another time than its neighbours: each stream keeps its own order."""
        self._to_client.send(deliver, *message, extra=extra)

    def fail(self, code: str, words: str) -> None:
        """End it."""
        if self.is_over:
            return
        self.is_over = True
        self.wire.leave(self)
        self._to_server.close()
        self._to_client.close()
        if self._guard:
            self._guard.cancel()
        under_way, self._under_way = self._under_way, {}
        for fail in under_way.values():
            fail(code, words)

    def on_broken(self) -> None:
        """End: the wire was cut."""
        self.fail("UNAVAILABLE", BROKEN)

    def on_silent(self) -> None:
        """Have the silence noticed, by the client's pings."""
        self._check_way()

    def _check_way(self) -> None:
        """Notice that nobody listens, and after a while that nothing comes through."""
        match self.wire.way:
            case Way.REFUSED:
                self._loop.call_later(self.wire.delay(), self.fail, "UNAVAILABLE", NOT_CONNECTED)
            case Way.SILENT if self._guard is None:
                self._guard = self._loop.call_later(random.uniform(*PING_SECONDS), self._ping)  # noqa: S311  no secret

    def _ping(self) -> None:
        self._guard = None
        if self.wire.way is not Way.OPEN:
            self.fail("UNAVAILABLE", SILENT)


def _run(deliver: Callable[..., None], *message: object) -> None:
    deliver(*message)


class ModelCall:
    """A unary call, to be awaited."""

    def __init__(self, connection: Connection, path: str, request: Any, timeout: float, token: str) -> None:
        self._connection, self._path, self._request, self._token = connection, path, request, token
        loop = asyncio.get_running_loop()
        self._answered: asyncio.Future[Any] = loop.create_future()
        self._number = connection.start(self._fail)
        self._deadline = loop.call_later(max(0.0, timeout), self._fail, "DEADLINE_EXCEEDED", "Deadline Exceeded")
        connection.to_server(self._arrive)

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._answered)
        finally:
            self._deadline.cancel()
            self._connection.end(self._number)

    def _arrive(self) -> None:
        connection = self._connection
        connection.server.call(self._path, self._request, self._token, self._reply, self._refuse, connection.wire.name)

    def _reply(self, reply: Any) -> None:
        if self._connection.wire.loses_answer():
            if random.random() < 0.5:  # noqa: S311, PLR2004  no secret; either a broken connection or a missed deadline
                self._connection.fail("UNAVAILABLE", BROKEN)
            return
        self._connection.to_client(self._take, reply)

    def _refuse(self, error: EtcdError) -> None:
        self._connection.to_client(self._fail, str(error.code), str(error.details))

    def _take(self, reply: Any) -> None:
        if not self._answered.done():
            self._answered.set_result(reply)

    def _fail(self, code: str, words: str) -> None:
        if not self._answered.done():
            self._answered.set_exception(make_error(code, words))
            self._answered.exception()  # nobody may look: the caller may have been cancelled


class ModelStream:
    """A stream: requests are written, replies read, in order."""

    def __init__(self, connection: Connection, path: str, token: str) -> None:
        self._connection, self._path, self._token = connection, path, token
        self._replies: asyncio.Queue[Any] = asyncio.Queue()
        self._is_over = self._is_cancelled = False
        self._served: Any = None
        self._number = connection.start(self._fail)
        connection.to_server(self._open)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other

    async def read(self) -> Any:
        """Wait for the next reply."""
        if self._is_cancelled:
            raise asyncio.CancelledError
        reply = await self._replies.get()
        if isinstance(reply, BaseException):
            self._replies.put_nowait(reply)
            raise reply
        return reply

    async def write(self, request: Any) -> None:
        """Send a request."""
        if self._is_over:
            raise asyncio.InvalidStateError("the call has ended")
        self._connection.to_server(self._serve, request)
        await asyncio.sleep(0)

    def cancel(self) -> bool:
        """End it."""
        if self._is_over:
            return False
        self._is_cancelled = True
        self._end(asyncio.CancelledError())
        asyncio.get_running_loop().call_later(self._connection.wire.delay(), self._leave)
        return True

    def done(self) -> bool:
        """Say whether it has ended."""
        return self._is_over

    def _end(self, error: BaseException) -> None:
        if not self._is_over:
            self._is_over = True
            self._connection.end(self._number)
            self._replies.put_nowait(error)

    def _fail(self, code: str, words: str) -> None:
        self._leave()
        self._end(make_error(code, words))

    # At the server

    def _open(self) -> None:
        if not self._is_over:
            self._served = self._connection.server.open(self._path, self._token, self._reply, self._refuse)

    def _serve(self, request: Any) -> None:
        if self._served:
            self._served.receive(request)

    def _leave(self) -> None:
        if self._served:
            self._connection.server.forget(self._served)
            self._served = None

    def _reply(self, reply: Any) -> None:
        extra = self._connection.wire.stream_delay if self._path.endswith("/Watch") else 0.0
        self._connection.to_client(self._take, reply, extra=extra)

    def _refuse(self, code: str, words: str) -> None:
        self._served = None
        self._connection.to_client(self._fail, code, words)

    def _take(self, reply: Any) -> None:
        if not self._is_over:
            self._replies.put_nowait(reply)
