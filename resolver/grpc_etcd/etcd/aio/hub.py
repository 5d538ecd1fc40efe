"""The watch hub for asyncio: all watches of a client over one stream. A thin driver of `etcd.hub`."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from grpc_etcd.etcd import errors
from grpc_etcd.etcd.aio.connection import Connection, is_being_cancelled
from grpc_etcd.etcd.aio.streams import read
from grpc_etcd.etcd.hub import commands
from grpc_etcd.etcd.hub.core import Core
from grpc_etcd.etcd.hub.driver import HubDriver
from grpc_etcd.etcd.hub.subscription import Subscription
from grpc_etcd.etcd.list_watch import watch_method
from grpc_etcd.etcd.model import WatchUpdate

LISTINGS = 8  # at a time; etcd answers some hundred small ones in a second either way


class WatchHub(HubDriver[Connection]):
    """Follows ranges of keys, each for its own consumer, over one stream. Belongs to one event loop.

    `on_update` is called from tasks of this object and must not block. When it fails, `on_error` is called with it
    (without one it is logged), and that range is listed again after a pause.
    """

    def __init__(
        self,
        connection: Connection,
        progress_seconds: float,
        on_error: Callable[[bytes, Exception], None] | None = None,
    ) -> None:
        super().__init__(connection, progress_seconds, on_error, LISTINGS)
        self._session: asyncio.Task[None] | None = None
        self._stream: Any = None
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0  # which uvloop does not report one that is due at once
        self._is_pumping = False

    async def close(self) -> None:
        """End the stream and all that is under way. No news come any more. May be called from within a callback."""
        self._is_closed = True
        if self._timer:
            self._timer.cancel()
        ending = self._tasks - {asyncio.current_task()}
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)

    def _follow(self, key: bytes, end: bytes, on_update: Callable[[WatchUpdate], None]) -> Subscription:
        if self._is_closed:
            raise errors.Closed("this watch hub has been closed")
        watch = self._core.follow(key, end, on_update)
        self._take(lambda: self._core.add(watch))
        return Subscription(watch, self)

    def note(self, note: Callable[[Core, float], None]) -> None:
        """Let the core note something: for the subscriptions."""
        self._take(lambda: note(self._core, time.monotonic()))

    def _take(self, note: Callable[[], None]) -> None:
        """Let the core note something, and do what follows. A fault in here must not end the hub."""
        if self._is_closed:
            return
        try:
            note()
            self._pump()
        except Exception as error:  # noqa: BLE001  whatever it is, all other watches go on
            self._abandon(error)
            self._arm()

    def _pump(self) -> None:
        if self._is_pumping:
            return  # a callback has asked for something; the loop below sees to it
        self._is_pumping = True
        try:
            self._advance()
        finally:
            self._is_pumping = False
        self._arm()

    def _arm(self) -> None:
        """Wake up when something is due. A timer that comes too early does no harm, so it is not always set again."""
        due = self._core.wake_at()
        if self._is_closed or (self._timer and self._timer_at <= due):
            return
        if self._timer:
            self._timer.cancel()
        self._timer_at = due
        self._timer = asyncio.get_running_loop().call_at(due, self._wake) if due < float("inf") else None

    def _wake(self) -> None:
        self._timer = None
        self._take(lambda: None)

    def _write(self, request: Any) -> None:
        self._requests.put_nowait(request)

    def _begin_to_ask(self, ask: commands.Ask) -> None:
        self._start(self._ask(ask))

    def _open(self, number: int) -> None:
        self._session = self._start(self._read(number, self._requests))

    def _end_stream(self, fault: errors.EtcdError | None = None) -> None:
        if fault and self._stream:
            self._connection.report(self._stream, fault)
        if self._session:
            self._session.cancel()
        self._session, self._stream, self._requests = None, None, asyncio.Queue()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="grpc-etcd-watch-hub")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask(self, ask: commands.Ask) -> None:
        try:
            answer = await self._connection.run(ask.steps)
        except errors.EtcdError as error:
            failure = error
            self._take(lambda: ask.failed(failure, time.monotonic()))
        except asyncio.CancelledError:  # of the task, or of the call: grpcio reports both alike
            if is_being_cancelled():
                raise
            self._take(lambda: ask.failed(errors.Unavailable("the call was cancelled"), time.monotonic()))
        except Exception as error:  # noqa: BLE001  a reply that cannot be read concerns whoever asked
            self._on_error(b"", error)
            unexpected = errors.EtcdError(f"unexpected: {error}")
            self._take(lambda: ask.failed(unexpected, time.monotonic()))
        else:
            self._take(lambda: ask.answered(answer, time.monotonic()))

    async def _read(self, number: int, requests: "asyncio.Queue[Any]") -> None:
        """Be the stream of this number, from its opening to its end."""
        try:
            stream = await self._connection.stream(watch_method())
        except errors.EtcdError as error:
            failure = error
        except asyncio.CancelledError:  # of the task, or of the login: grpcio reports both alike
            if is_being_cancelled():
                raise
            failure = errors.Unavailable("the call was cancelled")
        except Exception as error:  # noqa: BLE001  whatever it is, the stream is opened again
            self._on_error(b"", error)
            failure = errors.EtcdError(f"unexpected: {error}")
        else:
            failure = await self._read_to_the_end(number, stream, requests)
        self._take(lambda: self._core.broken(number, failure, time.monotonic()))

    async def _read_to_the_end(self, number: int, stream: Any, requests: "asyncio.Queue[Any]") -> errors.EtcdError:
        writing = asyncio.create_task(write_all(stream, requests))
        self._stream = stream
        try:
            while True:
                self._receive(number, await read(stream, lambda: None))
        except errors.EtcdError as error:
            self._connection.report(stream, error)
            return error
        except Exception as error:  # noqa: BLE001  a reply that cannot be read
            self._on_error(b"", error)
            return errors.EtcdError(f"unexpected: {error}")
        finally:
            stream.cancel()
            writing.cancel()  # grpcio never ends a write on a call that was cancelled before it had begun
            await asyncio.wait({writing})

    def _receive(self, number: int, reply: Any) -> None:
        self._take(lambda: self._core.received(number, reply, time.monotonic()))


async def write_all(stream: Any, requests: "asyncio.Queue[Any]") -> None:
    """Send requests as they come; beside the reading, for etcd stops taking them while its answers are not read."""
    with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):  # the reader learns of it too
        while True:
            await stream.write(await requests.get())
