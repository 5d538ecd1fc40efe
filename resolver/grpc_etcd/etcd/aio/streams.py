"""Long-lived streams for asyncio: the list-watch iterator and the keep-alive."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self, assert_never

import grpc
import grpc.aio

from grpc_etcd.etcd import errors, following, renewing
from grpc_etcd.etcd.aio.link import Link
from grpc_etcd.etcd.following import Following
from grpc_etcd.etcd.model import LeaseId, News, State
from grpc_etcd.etcd.translating import translate

STREAM_ENDED = "etcd ended the stream"


async def read(stream: Any, link: Link) -> Any:
    """Read a stream's next message; raise an EtcdError when there is none."""
    try:
        message = await stream.read()
    except grpc.RpcError as error:
        link.suspect()
        raise translate(error) from error
    except asyncio.CancelledError as error:  # grpcio cancels the reader of a stream that was cancelled
        task = asyncio.current_task()
        if task and task.cancelling():
            raise
        raise errors.Unavailable(STREAM_ENDED) from error
    if message is grpc.aio.EOF:
        link.suspect()
        raise errors.Unavailable(STREAM_ENDED)
    return message


async def write(stream: Any, request: Any) -> None:
    """Write a message; raise an EtcdError when the stream has ended."""
    try:
        await stream.write(request)
    except grpc.RpcError as error:
        raise translate(error) from error
    except asyncio.InvalidStateError as error:
        raise errors.Unavailable(STREAM_ENDED) from error


class ListWatch(AsyncIterator[News]):
    """An endless iterator of news, for one task; close() may be called by any task of the loop."""

    def __init__(self, link: Link, prefixes: Sequence[bytes], progress_seconds: float) -> None:
        self._link = link
        self._progress_seconds = progress_seconds
        self._following = Following(prefixes, time.time, random.random)
        self._closing = asyncio.Event()
        self._stream: Any = None
        self._reminder: asyncio.Task[None] | None = None
        self._news = self._run()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> News:
        return await anext(self._news)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self._news.aclose()

    @property
    def state(self) -> State:
        """How fresh the news are."""
        return self._following.state

    def close(self) -> None:
        """End the iterator, also while a task waits in it."""
        self._closing.set()
        self._hang_up()

    async def _run(self) -> AsyncGenerator[News, None]:
        commands = self._following.commands()
        answer: Any = None
        failure: errors.EtcdError | None = None
        try:
            while not self._closing.is_set():
                command = commands.throw(failure) if failure else commands.send(answer)
                answer = failure = None
                if isinstance(command, following.Tell):
                    yield command.news
                    continue
                try:
                    answer = await self._carry_out(command)
                except errors.EtcdError as error:
                    failure = error
        finally:
            self._hang_up()

    async def _carry_out(self, command: following.Command) -> Any:
        match command:
            case following.Ask(call):
                return await self._link.call(call)
            case following.Open(requests):
                return await self._open(requests)
            case following.Read():
                return await read(self._stream, self._link)
            case following.LogIn():
                return self._link.drop_token()
            case following.Wait(seconds):
                self._hang_up()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), seconds)
                return None
            case following.Tell():
                raise AssertionError(command)
            case _:
                assert_never(command)

    async def _open(self, requests: Sequence[Any]) -> None:
        self._hang_up()
        stream = await self._link.stream(following.watch_method())
        self._stream = stream
        for request in requests:
            await write(stream, request)
        self._reminder = asyncio.create_task(self._ask_for_progress(stream))
        if self._closing.is_set():
            self._hang_up()

    async def _ask_for_progress(self, stream: Any) -> None:
        with contextlib.suppress(errors.EtcdError):  # the reader learns of it too
            while True:
                await asyncio.sleep(self._progress_seconds)
                await write(stream, following.progress_request())

    def _hang_up(self) -> None:
        if self._reminder is not None:
            self._reminder.cancel()
            self._reminder = None
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None


class KeepAlive:
    """Keeps many leases alive over a few streams, each with its own tasks while it has leases.

    `on_lost` is called with each lease that etcd no longer knows; that lease is renewed no more.
    """

    def __init__(self, link: Link, on_lost: Callable[[LeaseId], object], streams: int) -> None:
        self._streams = [RenewalStream(link, on_lost) for _ in range(streams)]

    def __len__(self) -> int:
        return sum(len(stream) for stream in self._streams)

    def add(self, lease_id: LeaseId, ttl_seconds: float, *, remaining_seconds: float | None = None) -> None:
        """Renew a lease from now on; give `remaining_seconds` (0: unknown) for one that is not fresh."""
        self._of(lease_id).add(lease_id, ttl_seconds, remaining_seconds)

    def remove(self, lease_id: LeaseId) -> None:
        """Renew a lease no longer; it runs out by itself."""
        self._of(lease_id).remove(lease_id)

    @property
    def state(self) -> State:
        """The state of the stream that is worst off."""
        return min((stream.state for stream in self._streams), key=lambda s: (s.connected, s.stale_since or 0.0))

    def close(self) -> None:
        """Stop renewing; leases run out by themselves."""
        for stream in self._streams:
            stream.close()

    def _of(self, lease_id: LeaseId) -> "RenewalStream":
        return self._streams[lease_id % len(self._streams)]


class RenewalStream:
    """One keep-alive stream: a task that sends what is due, and one that reads the answers."""

    def __init__(self, link: Link, on_lost: Callable[[LeaseId], object]) -> None:
        self._link, self._on_lost = link, on_lost
        self._renewals = renewing.Renewals()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.state = State(connected=True, stale_since=None)

    def __len__(self) -> int:
        return len(self._renewals)

    def add(self, lease_id: LeaseId, ttl_seconds: float, remaining_seconds: float | None) -> None:
        """Renew a lease; the stream opens with the first one."""
        self._renewals.add(lease_id, ttl_seconds, time.monotonic(), remaining_seconds)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def remove(self, lease_id: LeaseId) -> None:
        """Renew a lease no longer."""
        self._renewals.remove(lease_id)

    def close(self) -> None:
        """End the tasks."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        failures = 0
        while True:
            opened = time.monotonic()
            try:
                await self._session()
            except errors.Closed:
                return
            except errors.EtcdError as error:
                failures = 1 if time.monotonic() - opened > renewing.ANSWER_SECONDS else failures + 1
                since = self.state.stale_since or time.time()
                self.state = State(connected=False, stale_since=since, error=error)
                if isinstance(error, errors.TokenRefused):
                    self._link.drop_token()
                await asyncio.sleep(following.pause_seconds(error, failures) * (0.5 + 0.5 * random.random()))  # noqa: S311
                self._renewals.reopen(time.monotonic())

    async def _session(self) -> None:
        stream = await self._link.stream(renewing.keep_alive_method())
        sender = asyncio.create_task(self._send(stream))
        try:
            while True:
                reply = await read(stream, self._link)
                self.state = State(connected=True, stale_since=None)
                if not self._renewals.receive(LeaseId(reply.ID), reply.TTL):
                    self._on_lost(LeaseId(reply.ID))
        finally:
            sender.cancel()
            stream.cancel()

    async def _send(self, stream: Any) -> None:
        with contextlib.suppress(errors.EtcdError):  # the reader learns of it too
            while True:
                self._wake.clear()
                for request in self._renewals.due(time.monotonic()):
                    await write(stream, request)
                if self._renewals.is_stuck(time.monotonic()):
                    stream.cancel()
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._renewals.pause_seconds(time.monotonic()))
