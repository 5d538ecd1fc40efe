"""Long-lived streams for asyncio: the list-watch iterator and the keep-alive."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self, assert_never

import grpc
import grpc.aio

from grpc_etcd.etcd import errors, list_watch, renewing
from grpc_etcd.etcd.aio.connection import Connection, close_all, is_being_cancelled
from grpc_etcd.etcd.keeping import BaseKeepAlive, BaseRenewalStream
from grpc_etcd.etcd.list_watch import ListWatchLoop
from grpc_etcd.etcd.model import LeaseId, State, WatchUpdate
from grpc_etcd.etcd.reporting import log_unexpected_renewal, note_unexpected
from grpc_etcd.etcd.stall_detector import StallDetector
from grpc_etcd.etcd.translating import translate

STREAM_ENDED = "etcd ended the stream"
STREAM_STUCK = "the stream is stuck"
LOST_WHILE_WRITING = "Internal error from Core"  # grpcio's words where a request was just being written


class ListWatch(AsyncIterator[WatchUpdate]):
    """An endless async iterator of news, to be used by one task; close() may be called from any.

    A wait that is cancelled, as by a timeout, loses no news: the next one goes on from there.

    `state` may be read at any time.
    """

    def __init__(
        self, connection: Connection, prefixes: Sequence[bytes], progress_seconds: float, start_revision: int
    ) -> None:
        self._connection = connection
        self._progress_seconds = progress_seconds
        jitter = random.Random().random  # noqa: S311 (no secret)
        self._following = ListWatchLoop(prefixes, time.time, jitter, start_revision)
        self._closing = asyncio.Event()
        self._stream: Any = None
        self._detector = StallDetector(progress_seconds)
        self._fault: errors.EtcdError | None = None
        self._guard: asyncio.Task[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._news = self._run()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchUpdate:
        try:
            return await anext(self._news)
        except asyncio.CancelledError:  # as by a timeout around one wait, which ends no more than that wait
            self._news = self._run()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @property
    def state(self) -> State:
        """How fresh the news are."""
        return self._following.state

    async def close(self) -> None:
        """End the iterator, also while another task waits in it."""
        self._closing.set()
        await self._hang_up()

    async def _run(self) -> AsyncIterator[WatchUpdate]:
        commands = self._following.commands()
        answer: Any = None
        failure: errors.EtcdError | None = None
        try:
            while not self._closing.is_set():
                command = commands.throw(failure) if failure else commands.send(answer)
                answer = failure = None
                if isinstance(command, list_watch.Deliver):
                    yield command.news
                    continue
                try:
                    answer = await self._carry_out(command)
                except errors.EtcdError as error:
                    failure = error
                except Exception as error:  # noqa: BLE001  whatever it is, as of the password's function: it goes on
                    failure = note_unexpected(error)
        finally:
            await self._hang_up()

    async def _carry_out(self, command: list_watch.Command) -> Any:
        match command:
            case list_watch.Ask(call):
                return await self._connection.call(call)
            case list_watch.Open(requests):
                return await self._open(requests)
            case list_watch.Read():
                return await self._read()
            case list_watch.LogIn():
                return self._connection.drop_token()
            case list_watch.Wait(seconds):
                await self._hang_up()
                return await sleep_unless(self._closing, seconds)
            case list_watch.Deliver():
                raise AssertionError(command)
            case _:
                assert_never(command)

    async def _open(self, requests: Sequence[Any]) -> None:
        await self._hang_up()
        stream = self._stream = await self._connection.stream(list_watch.watch_method())
        self._detector, self._fault = StallDetector(self._progress_seconds), None
        try:
            for request in requests:
                await self._write(request)
        except errors.EtcdError as error:  # nobody reads it yet, who would report it
            self._connection.report(stream, error)
            raise
        self._guard = asyncio.create_task(self._look_after(stream, self._detector))

    async def _write(self, request: Any) -> None:
        if self._stream is None:
            raise errors.Closed("the list-watch has been closed")
        writing = self._writing = asyncio.ensure_future(self._stream.write(request))
        await expect(writing)
        self._writing = None
        if writing.cancelled():
            raise errors.Unavailable(STREAM_ENDED)
        try:
            writing.result()
        except grpc.RpcError as error:
            raise name_loss(translate(error)) from error
        except asyncio.InvalidStateError as error:  # grpcio's answer on a stream that has ended
            raise errors.Unavailable(STREAM_ENDED) from error

    async def _read(self) -> Any:
        stream, detector = self._stream, self._detector
        if stream is None:
            raise errors.Closed("the list-watch has been closed")
        replied = False
        detector.begin(time.monotonic())
        try:
            reply = await read(stream, lambda: self._fault)
            replied = True
        except errors.EtcdError as error:
            self._connection.report(stream, error)
            raise
        finally:
            detector.end(replied=replied)
        return reply

    async def _look_after(self, stream: Any, detector: StallDetector) -> None:
        """See to it that no read of a stream lasts forever."""
        while True:
            since, left = detector.waiting_since, detector.left(time.monotonic())
            if since is None or left > 0:
                await asyncio.sleep(left)
                continue
            is_stuck = detector.is_owed
            fault: errors.EtcdError | None = None
            try:
                await self._question(detector, since)
            except errors.EtcdError as error:
                fault = error
            except Exception as error:  # noqa: BLE001  without its guard the stream might be silent forever
                fault = note_unexpected(error)
            if fault and detector.waiting_since == since:
                self._fault = fault
                if is_stuck:  # else a call has failed, which was reported by itself, and maybe of another member
                    self._connection.report(stream, fault)
                self._connection.hang_up(stream)
                return

    async def _question(self, detector: StallDetector, since: float) -> None:
        """Find out whether there is anything that the stream has not reported.

        If so ask it, which it owes an answer.
        """
        if detector.is_owed:
            raise errors.DeadlineExceeded(STREAM_STUCK)
        detector.note_asked(time.monotonic())
        revision = await self._connection.call(self._following.ask_revision())
        if self._following.is_behind(revision):
            detector.owe(since)
            await self._write(list_watch.progress_request())

    async def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        guard, self._guard = self._guard, None
        writing, self._writing = self._writing, None
        if stream is not None:
            self._connection.hang_up(stream)
        pending = {each for each in (guard, writing) if each is not None}
        for each in pending:
            each.cancel()  # grpcio never ends a write on a call that was cancelled before it had begun
        if pending:
            await asyncio.wait(pending)


async def read(stream: Any, fault: Callable[[], errors.EtcdError | None]) -> Any:
    """Read a reply; `fault` says why the stream was given up, if it was."""
    try:
        reply = await stream.read()
    except asyncio.CancelledError as error:  # of the task, or of the call: grpcio reports both alike
        if is_being_cancelled():
            raise
        raise fault() or errors.Unavailable(STREAM_ENDED) from error
    except grpc.RpcError as error:
        raise name_loss(translate(error)) from error
    if reply is grpc.aio.EOF:
        raise errors.Unavailable(STREAM_ENDED)
    return reply


def name_loss(error: errors.EtcdError) -> errors.EtcdError:
    """Return that a stream has ended, where grpcio says only that a request could not be written to it."""
    return errors.Unavailable(STREAM_ENDED, error.code) if error.details == LOST_WHILE_WRITING else error


async def expect(answer: asyncio.Future[Any]) -> None:
    """Wait until it is done, but not forever: whatever is stuck where, the stream is to be opened again."""
    if not (await asyncio.wait({answer}, timeout=renewing.ANSWER_SECONDS))[0]:
        raise errors.DeadlineExceeded(STREAM_STUCK)


async def sleep_unless(event: asyncio.Event, seconds: float) -> None:
    """Sleep, but end when the event happens."""
    with contextlib.suppress(TimeoutError):  # wait_for() of Python 3.11 can lose a cancellation
        async with asyncio.timeout(seconds):
            await event.wait()


class KeepAlive(BaseKeepAlive["RenewalStream"]):
    """Keeps many leases alive over a few streams, each with its own tasks while it has leases.

    `on_lost` is called, from a task of this object, with each lease that etcd no longer knows; that lease is renewed no
    more. It must not block.
    """

    def __init__(self, connection: Connection, on_lost: Callable[[LeaseId], object], streams: int) -> None:
        super().__init__([RenewalStream(self, connection, on_lost) for _ in range(streams)])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop renewing; leases expire by themselves."""
        await close_all(stream.close for stream in self._streams)


class RenewalStream(BaseRenewalStream[Connection]):
    """One keep-alive stream: one task reads, another sends what is due."""

    def __init__(self, owner: KeepAlive, connection: Connection, on_lost: Callable[[LeaseId], object]) -> None:
        super().__init__(owner, connection, on_lost)
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, lease_id: LeaseId, ttl_seconds: float, remaining_seconds: float | None) -> None:
        """Renew a lease from now on."""
        if self._closing.is_set():
            raise errors.Closed("this keep-alive has been closed")
        self._renewals.add(lease_id, ttl_seconds, time.monotonic(), remaining_seconds)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="grpc-etcd-keep-alive")
        self._wake.set()

    async def close(self) -> None:
        """End both tasks, unless one of them is that which closes (from `on_lost`)."""
        self._closing.set()
        if self._task and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        failures = list_watch.Failures()
        while not self._closing.is_set():
            try:
                await self._session()
            except errors.EtcdError as error:
                failure = error
            except Exception as error:  # noqa: BLE001  whatever it is: leases that nobody renews take all keys along
                log_unexpected_renewal(error)
                failure = errors.EtcdError(f"unexpected: {error}")
            if self.state.connected:
                failures.forget()
            if pause := self._note_failure(failure, failures):
                await sleep_unless(self._closing, pause)

    async def _session(self) -> None:
        self._renewals.reopen(time.monotonic())
        stream = await self._connection.stream(renewing.keep_alive_method())
        sending = asyncio.create_task(self._send(stream))
        try:
            while True:
                self._receive(await read(stream, lambda: why_stuck(sending)))
        except errors.EtcdError as error:
            self._connection.report(stream, error)
            raise
        finally:
            stream.cancel()
            sending.cancel()
            await asyncio.wait({sending})

    async def _send(self, stream: Any) -> None:
        try:
            while not self._renewals.is_stuck(time.monotonic()):
                self._wake.clear()
                for request in self._renewals.due(time.monotonic()):
                    await stream.write(request)
                await sleep_unless(self._wake, self._renewals.pause_seconds(time.monotonic()))
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the reader learns of it too
        except Exception as error:  # noqa: BLE001  whatever it is: the reader would wait for answers forever
            log_unexpected_renewal(error)
        stream.cancel()


def why_stuck(sending: asyncio.Task[None]) -> errors.EtcdError | None:
    """Return why the sending half has given a stream up, if it has."""
    return errors.DeadlineExceeded("a renewal was not answered") if sending.done() else None
