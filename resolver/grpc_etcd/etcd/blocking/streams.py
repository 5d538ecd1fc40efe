"""Long-lived streams for threads: the list-watch iterator and the keep-alive."""

import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, assert_never

import grpc

from grpc_etcd.etcd import errors, list_watch, renewing
from grpc_etcd.etcd.blocking.connection import Connection
from grpc_etcd.etcd.keeping import BaseKeepAlive, BaseRenewalStream
from grpc_etcd.etcd.list_watch import ListWatchLoop
from grpc_etcd.etcd.model import LeaseId, State, WatchUpdate
from grpc_etcd.etcd.reporting import log_unexpected_renewal, note_unexpected
from grpc_etcd.etcd.stall_detector import StallDetector
from grpc_etcd.etcd.translating import translate
from grpc_etcd.threads import start_thread

STREAM_ENDED = "etcd ended the stream"
STREAM_STUCK = "the stream is stuck"


class Requests(Iterator[Any]):
    """The sending half of a watch stream: what was put in."""

    def __init__(self, first: Sequence[Any]) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for request in first:
            self._queue.put(request)

    def __next__(self) -> Any:
        request = self._queue.get()
        if request is None:
            raise StopIteration
        return request

    def put(self, request: Any) -> None:
        """Send a request."""
        self._queue.put(request)

    def close(self) -> None:
        """End the half, and so gRPC's thread that waits in it."""
        self._queue.put(None)


class Reading:
    """One open watch stream: read by the consumer's thread, given up by the guard's."""

    def __init__(self, stream: Any, requests: Requests, progress_seconds: float) -> None:
        self.stream, self._requests = stream, requests
        self.detector = StallDetector(progress_seconds)
        if not stream.add_callback(requests.close):
            requests.close()  # grpcio calls nobody back for a call that has ended already
        self.fault: errors.EtcdError | None = None  # why it is given up

    def read(self) -> Any:
        """Wait for a reply."""
        replied = False
        self.detector.begin(time.monotonic())
        try:
            reply = next(self.stream)
            replied = True
        except StopIteration as stop:
            raise errors.Unavailable(STREAM_ENDED) from stop
        except grpc.RpcError as error:
            fault = translate(error)
        else:
            return reply
        finally:
            self.detector.end(replied=replied)
        raise self.fault or fault  # out here: else the ended stream would live on as what the fault came from

    def ask(self, request: Any) -> None:
        """Send a request."""
        self._requests.put(request)


class ListWatch(Iterator[WatchUpdate]):
    """An endless iterator of news, to be used by one thread; close() may be called from any.

    `state` may be read at any time and from any thread.
    """

    def __init__(
        self, connection: Connection, prefixes: Sequence[bytes], progress_seconds: float, start_revision: int
    ) -> None:
        self._connection = connection
        self._progress_seconds = progress_seconds
        jitter = random.Random().random  # noqa: S311 (no secret)
        self._following = ListWatchLoop(prefixes, time.time, jitter, start_revision)
        self._closing = threading.Event()
        self._reading: Reading | None = None
        self._guard: threading.Thread | None = None
        self._guard_lock = threading.Lock()
        self._news = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchUpdate:
        return next(self._news)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def state(self) -> State:
        """How fresh the news are."""
        return self._following.state

    def close(self) -> None:
        """End the iterator, also while another thread waits in it."""
        self.begin_close()
        with self._guard_lock:
            started = self._guard
        if started:
            started.join()

    def begin_close(self) -> None:
        """End the iterator without waiting for a call that is under way."""
        self._closing.set()
        self._hang_up()

    def look_after(self) -> float:
        """See to it that no read lasts forever; return after how many seconds to look again."""
        reading = self._reading
        if reading is None:
            return renewing.ANSWER_SECONDS / 2
        since, left = reading.detector.waiting_since, reading.detector.left(time.monotonic())
        if since is None or left > 0:
            return left
        is_stuck = reading.detector.is_owed
        fault: errors.EtcdError | None = None
        try:
            self._question(reading, since)
        except errors.EtcdError as error:
            fault = error
        except Exception as error:  # noqa: BLE001  without its guard the stream might be silent forever
            fault = note_unexpected(error)
        if fault and reading.detector.waiting_since == since:
            reading.fault = fault
            if is_stuck:  # else a call has failed, which was reported by itself, and maybe of another member
                self._connection.report(reading.stream, fault)
            self._connection.hang_up(reading.stream)
        return reading.detector.left(time.monotonic())

    def _question(self, reading: Reading, since: float) -> None:
        """Find out whether there is anything that the stream has not reported.

        If so ask it, which it owes an answer.
        """
        if reading.detector.is_owed:
            raise errors.DeadlineExceeded(STREAM_STUCK)
        reading.detector.note_asked(time.monotonic())
        if self._following.is_behind(self._connection.call(self._following.ask_revision())):
            reading.detector.owe(since)
            reading.ask(list_watch.progress_request())

    def _run(self) -> Iterator[WatchUpdate]:
        commands = self._following.commands()
        answer: Any = None
        failure: errors.EtcdError | None = None
        while not self._closing.is_set():
            command = commands.throw(failure) if failure else commands.send(answer)
            answer = failure = None
            if isinstance(command, list_watch.Deliver):
                yield command.news
                continue
            try:
                answer = self._carry_out(command)
            except errors.EtcdError as error:
                failure = error
            except Exception as error:  # noqa: BLE001  whatever it is, as of the password's function: it goes on
                failure = note_unexpected(error)
        self._hang_up()

    def _carry_out(self, command: list_watch.Command) -> Any:
        match command:
            case list_watch.Ask(call):
                return self._connection.call(call)
            case list_watch.Open(requests):
                return self._open(requests)
            case list_watch.Read():
                return self._read()
            case list_watch.LogIn():
                return self._connection.drop_token()
            case list_watch.Wait(seconds):
                self._hang_up()
                return self._closing.wait(seconds)
            case list_watch.Deliver():
                raise AssertionError(command)
            case _:
                assert_never(command)

    def _open(self, requests: Sequence[Any]) -> None:
        self._hang_up()
        sending = Requests(requests)
        stream = self._connection.stream(list_watch.watch_method(), sending)
        self._reading = Reading(stream, sending, self._progress_seconds)
        self._start_guard()
        if self._closing.is_set():
            self._hang_up()

    def _start_guard(self) -> None:
        """Start the guard with the first stream, unless whoever closes has looked for it already."""
        with self._guard_lock:
            if self._guard is None and not self._closing.is_set():
                watch = weakref.ref(self)  # whoever drops a list-watch without closing it keeps no thread
                self._guard = start_thread(guard, watch, self._closing, name="grpc-etcd-list-watch")

    def _read(self) -> Any:
        reading = self._reading
        if reading is None:
            raise errors.Closed("the list-watch has been closed")
        try:
            return reading.read()
        except errors.EtcdError as error:
            self._connection.report(reading.stream, error)
            raise

    def _hang_up(self) -> None:
        reading = self._reading
        if reading is not None:
            self._connection.hang_up(reading.stream)


def guard(watch: "weakref.ref[ListWatch]", closing: threading.Event) -> None:
    """Look after a list-watch until it is closed or forgotten."""
    pause = 0.0
    while not closing.wait(pause):
        watched = watch()
        if watched is None:
            return
        pause = watched.look_after()
        del watched


class KeepAlive(BaseKeepAlive["RenewalStream"]):
    """Keeps many leases alive over a few streams, each with its own pair of threads while it has leases.

    `on_lost` is called, from a thread of this object, with each lease that etcd no longer knows; that lease is
    renewed no more. All methods may be called from any thread.
    """

    def __init__(self, connection: Connection, on_lost: Callable[[LeaseId], object], streams: int) -> None:
        super().__init__(
            [RenewalStream(self, connection, on_lost, f"grpc-etcd-keep-alive-{number}") for number in range(streams)]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop renewing; leases expire by themselves."""
        self.begin_close()
        for stream in self._streams:
            stream.end_close()

    def begin_close(self) -> None:
        """Stop renewing, and wait for nobody."""
        for stream in self._streams:
            stream.begin_close()


class RenewalStream(BaseRenewalStream[Connection]):
    """One keep-alive stream: a thread reads, gRPC's own thread sends what is due."""

    def __init__(
        self, owner: KeepAlive, connection: Connection, on_lost: Callable[[LeaseId], object], name: str
    ) -> None:
        super().__init__(owner, connection, on_lost)
        self._name = name
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._stream: Any = None
        self._is_stuck = False

    def add(self, lease_id: LeaseId, ttl_seconds: float, remaining_seconds: float | None) -> None:
        """Renew a lease from now on."""
        with self._lock:
            if self._closing.is_set():
                raise errors.Closed("this keep-alive has been closed")
            self._renewals.add(lease_id, ttl_seconds, time.monotonic(), remaining_seconds)
            if self._thread is None:
                self._thread = start_thread(self._run, name=self._name)
        self._wake.set()

    def begin_close(self) -> None:
        """Make both threads end."""
        with self._lock:
            self._closing.set()
        self._wake.set()
        stream = self._stream
        if stream is not None:
            self._connection.hang_up(stream)

    def end_close(self) -> None:
        """Wait for the reading thread, unless it is that which closes (from `on_lost`)."""
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        failures = list_watch.Failures()
        while not self._closing.is_set():
            try:
                for reply in self._open():
                    self._receive(reply)
                failure: errors.EtcdError = errors.Unavailable(STREAM_ENDED)
            except (errors.EtcdError, grpc.RpcError) as error:
                failure = self._explain(error)
            except Exception as error:  # noqa: BLE001  whatever it is: leases that nobody renews take all keys along
                log_unexpected_renewal(error)
                failure = errors.EtcdError(f"unexpected: {error}")
            if self.state.connected:
                failures.forget()
            if self._stream is not None:
                self._connection.report(self._stream, failure)
            self._closing.wait(self._note_failure(failure, failures))
        self._stream = None  # which the garbage collector alone would find: see `translate`

    def _open(self) -> Any:
        ended = threading.Event()
        with self._lock:
            self._ended.set()  # whoever still sends for the stream before takes nothing that belongs to this one
            self._ended, self._is_stuck = ended, False
            self._renewals.reopen(time.monotonic())
        self._stream = self._connection.stream(renewing.keep_alive_method(), self._requests(ended))
        if not self._stream.add_callback(lambda: self._end_requests(ended)):
            self._end_requests(ended)  # grpcio calls nobody back for a call that has ended already
        if self._closing.is_set():
            self._connection.hang_up(self._stream)
        return self._stream

    def _end_requests(self, ended: threading.Event) -> None:
        ended.set()
        self._wake.set()

    def _requests(self, ended: threading.Event) -> Iterator[bytes]:
        while not self._closing.is_set():
            with self._lock:
                if ended.is_set():
                    return
                self._wake.clear()
                now = time.monotonic()
                due, pause, stuck = (
                    self._renewals.due(now),
                    self._renewals.pause_seconds(now),
                    self._renewals.is_stuck(now),
                )
            if stuck:
                self._is_stuck = True
                self._stream.cancel()
                return
            yield from due
            self._wake.wait(pause)

    def _explain(self, error: errors.EtcdError | grpc.RpcError) -> errors.EtcdError:
        said = translate(error) if isinstance(error, grpc.RpcError) else error
        return errors.DeadlineExceeded("a renewal was not answered") if self._is_stuck else said
