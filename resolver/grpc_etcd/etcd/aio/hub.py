"""The watch hub for asyncio: all watches of a client over one stream. A thin driver of `etcd.hub`."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, assert_never

import grpc

from grpc_etcd.etcd import errors, model
from grpc_etcd.etcd.aio.link import Link, is_being_cancelled
from grpc_etcd.etcd.aio.streams import read
from grpc_etcd.etcd.following import watch_method
from grpc_etcd.etcd.hub import commands
from grpc_etcd.etcd.hub.core import Core
from grpc_etcd.etcd.hub.subscription import Subscription
from grpc_etcd.etcd.hub.watch import Watch
from grpc_etcd.etcd.model import News, State
from grpc_etcd.etcd.reporting import log_unexpected

LISTINGS = 8  # at a time; etcd answers some hundred small ones in a second either way


class WatchHub:
    """Follows ranges of keys, each for its own consumer, over one stream. Belongs to one event loop.

    `on_news` is called from tasks of this object and must not block. When it fails, `on_error` is told of it (without
    one it is logged), and that range is listed again after a pause.
    """

    def __init__(
        self, link: Link, progress_seconds: float, on_error: Callable[[bytes, Exception], None] | None = None
    ) -> None:
        self._link = link
        self._on_error = on_error or log_unexpected
        jitter = random.Random().random  # noqa: S311 (no secret)
        self._core = Core(time.time, jitter, progress_seconds, LISTINGS)
        self._session: asyncio.Task[None] | None = None
        self._stream: Any = None
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0  # which uvloop does not tell of one that is due at once
        self._is_pumping = False
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<WatchHub {self._core.state}>"

    @property
    def state(self) -> State:
        """How fresh the stream that all share is."""
        return self._core.state

    @property
    def history(self) -> int:
        """How often etcd turned out to hold another history than the one that was followed."""
        return self._core.history

    def follow(self, prefix: bytes, on_news: Callable[[News], None]) -> Subscription:
        """List all keys of a prefix and follow them, until the subscription is closed."""
        return self._follow(model.range_start(prefix), model.prefix_end(prefix), on_news)

    def follow_key(self, key: bytes, on_news: Callable[[News], None]) -> Subscription:
        """Read one key and follow it, until the subscription is closed."""
        return self._follow(key, b"", on_news)

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

    def _follow(self, key: bytes, end: bytes, on_news: Callable[[News], None]) -> Subscription:
        if self._is_closed:
            raise errors.Closed("this watch hub has been closed")
        watch = self._core.follow(key, end, on_news)
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
            self._on_error(b"", error)
            self._core.abandon(errors.EtcdError(f"unexpected: {error}"), time.monotonic())
            self._arm()

    def _pump(self) -> None:
        if self._is_pumping:
            return  # a callback has asked for something; the loop below sees to it
        self._is_pumping = True
        try:
            while due := self._core.advance(time.monotonic()):
                for command in due:
                    self._carry_out(command)
        finally:
            self._is_pumping = False
        self._arm()

    def _arm(self) -> None:
        """Wake up when something is due. A timer that comes too early does no harm, so it is not always set anew."""
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

    def _carry_out(self, command: commands.Command) -> None:
        match command:
            case commands.Tell(watch, news):
                self._tell(watch, news)
            case commands.Write(request):
                self._requests.put_nowait(request)
            case commands.Ask():
                self._start(self._ask(command))
            case commands.Open(number):
                self._session = self._start(self._read(number, self._requests))
            case commands.HangUp(fault):
                self._hang_up(fault)
            case commands.LogIn():
                self._link.drop_token()
            case _:
                assert_never(command)

    def _hang_up(self, fault: errors.EtcdError | None) -> None:
        if fault and self._stream:
            self._link.report(self._stream, fault)
        if self._session:
            self._session.cancel()
        self._session, self._stream, self._requests = None, None, asyncio.Queue()

    def _tell(self, watch: Watch, news: News) -> None:
        if self._is_closed or watch.is_closed:
            return
        try:
            watch.on_news(news)
        except Exception as error:  # noqa: BLE001  a consumer's fault concerns that consumer
            self._on_error(watch.key, error)
            self._core.fault(watch, time.monotonic())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="grpc-etcd-watch-hub")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask(self, ask: commands.Ask) -> None:
        try:
            answer = await self._link.run(ask.steps)
        except errors.EtcdError as error:
            failure = error
            self._take(lambda: ask.failed(failure, time.monotonic()))
        except asyncio.CancelledError:  # of the task, or of the call: grpcio tells both alike
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
            stream = await self._link.stream(watch_method())
        except errors.EtcdError as error:
            failure = error
        except asyncio.CancelledError:  # of the task, or of the log-in: grpcio tells both alike
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
            self._link.report(stream, error)
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
    with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):  # the reader hears of it too
        while True:
            await stream.write(await requests.get())
