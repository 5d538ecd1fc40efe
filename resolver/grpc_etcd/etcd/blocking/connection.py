"""The way to etcd for threads: channels to its members, the token, unary calls and streams. Thread-safe."""

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import cache, partial
from typing import Any, TypeVar

import grpc

from grpc_etcd.etcd import errors
from grpc_etcd.etcd.calls import Call, Method, Steps
from grpc_etcd.etcd.connection import BaseConnection, BaseMemberConnection
from grpc_etcd.etcd.credentials import HAS_LEADER, Credentials, Metadata
from grpc_etcd.etcd.dialing import Dialer, Facts
from grpc_etcd.threads import check_threads, start_thread

T = TypeVar("T")
STREAM_THREADS = 2  # of grpcio, for a channel's first stream: one that is notified of all, and one that sends
FUTURE_THREADS = 1  # the same for a call that is not waited for at once


def close_client(connection: "Connection", streams: Sequence[Any]) -> None:
    """End a client's streams and channels: streams wait for their threads, and these for calls, which end first."""
    for stream in streams:
        stream.begin_close()
    connection.close()
    for stream in streams:
        stream.close()


class MemberConnection(BaseMemberConnection[grpc.Channel]):
    """One member."""

    def open(self, method: Method, metadata: Metadata, *requests: Any) -> Any:
        """Open a stream; RuntimeError where grpcio may not start the threads that it needs for one."""
        check_threads(STREAM_THREADS)
        return super().open(method, metadata, *requests)

    def close(self) -> None:
        """Close the channels."""
        for channel in self.channels():
            channel.close()


class Connection(BaseConnection[MemberConnection]):
    """What a client and its streams share."""

    def __init__(
        self,
        dialer: Dialer | None,
        credentials: Credentials,
        timeout_seconds: float,
        channel: grpc.Channel | None = None,
    ) -> None:
        super().__init__(dialer, credentials, timeout_seconds, MemberConnection(lambda: channel) if channel else None)
        self._process = os.getpid()
        self._log_in_lock = threading.Lock()
        self._asked: tuple[int, Future[Call[str]]] | None = None  # the program's function, of which process
        _forks().connections.add(self)

    def run(self, steps: Steps[T]) -> T:
        """Make the calls that some steps ask for."""
        reply = None
        while True:
            try:
                call = steps.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            reply = self.call(call)

    def call(self, call: Call[T]) -> T:
        """Make one call, all in one time; log in before it where needed, and once more when the token is refused."""
        end = self._end()
        token = self._log_in(end)
        try:
            return self._send(call, token, end)
        except (errors.TokenRefused, errors.PermissionDenied) as error:
            if not self._credentials.is_refused(token, error):
                raise
            self._credentials.drop(token)
            return self._send(call, self._log_in(end), end)
        except errors.DeadlineExceeded:
            self._credentials.drop(token)
            raise

    def stream(self, method: Method, requests: Iterator[Any]) -> Any:
        """Open a stream without a deadline; how it fails is to be reported."""
        self._credentials.forget_that_nobody_was_asked()  # a stream stands for one user as long as it lives
        metadata = (*self._log_in(self._end()), *HAS_LEADER)
        try:
            return self._current_members()[self._rotation.current].open(method, metadata, requests)
        except ValueError as error:  # grpcio's answer on a channel that was closed meanwhile
            raise errors.Closed(str(error)) from error

    def close(self) -> None:
        """Close the channels, unless it was adopted."""
        with self._member_lock:
            self.closed = True
            if asked := self._asked:
                settle(asked[1].set_exception, errors.Closed("the client was closed during the login"))
            if self._dialer:
                for line in self._members:
                    line.close()
            self._members = ()

    def _end(self) -> float:
        return time.monotonic() + self._timeout_seconds

    def _send(self, call: Call[T], metadata: Metadata, end: float) -> T:
        """Make a call at the current member, or at another one if it was certainly not sent."""
        lines = self._current_members()
        member, tried = self._rotation.current, list[int]()
        while True:
            try:
                reply = self._send_to(lines[member], call, metadata, end)
            except errors.EtcdError as error:
                tried.append(member)
                following = self._note_failure(member, lines[member], error, tried)
                if following is None or time.monotonic() >= end:
                    lines = ()  # whoever keeps the error keeps no channel by it, which would dial forever
                    raise error.with_traceback(None) from error.__cause__
                member, lines = following, self._current_members()
            else:
                if self._rotation.silent:
                    self._give_up_on_silent(member)
                return reply

    def _send_to(self, line: MemberConnection, call: Call[T], metadata: Metadata, end: float) -> T:
        try:
            unary, timeout = line.unary(call.method), end - time.monotonic()
            if call.meanwhile is None:
                reply = unary(call.request, timeout=timeout, metadata=metadata)
            else:
                check_threads(FUTURE_THREADS)
                future = unary.future(call.request, timeout=timeout, metadata=metadata)
                call.meanwhile()
                reply = future.result()
        except grpc.RpcError as error:
            self._recheck.suspect()
            raise self._explain(error) from error
        except ValueError as error:  # grpcio's answer on a channel that was closed meanwhile
            raise errors.Closed(str(error)) from error
        return call.read(reply)

    def _log_in(self, end: float) -> Metadata:
        token = self._credentials.token
        if token is not None:
            return token
        if not self._log_in_lock.acquire(timeout=max(0.0, end - time.monotonic())):
            raise errors.DeadlineExceeded("a login that another call has begun has not been answered")
        try:
            token = self._credentials.token
            return self._credentials.accept(self._fetch_token(end)) if token is None else token
        finally:
            self._log_in_lock.release()

    def _fetch_token(self, end: float) -> str:
        try:
            call = self._ask_program(end) if self._credentials.asks_program else self._credentials.log_in()
            return self._send(call, (), end)
        except errors.AuthNotEnabled:
            return ""

    def _ask_program(self, end: float) -> Call[str]:
        """Have the program's function called; who waits for it, or closes, waits no longer than for etcd.

        One that has not answered yet is not called a second time beside that: what it gives at last is taken.
        """
        with self._member_lock:
            if self.closed:
                raise errors.Closed("the client has been closed")
            if self._asked is None or self._asked[0] != os.getpid():
                self._asked = os.getpid(), self._begin_to_ask()
            asked = self._asked
        try:
            return asked[1].result(max(0.0, end - time.monotonic()))
        except FutureTimeoutError:
            if asked[1].done() and asked[1].exception():
                raise  # the function's own
            raise errors.DeadlineExceeded("the login waits for the password function") from None
        finally:
            with self._member_lock:
                if asked[1].done() and self._asked is asked:
                    self._asked = None

    def _begin_to_ask(self) -> "Future[Call[str]]":
        answer: Future[Call[str]] = Future()

        def ask() -> None:
            try:
                call = self._credentials.log_in()
            except BaseException as error:  # noqa: BLE001  whoever waits gets it
                settle(answer.set_exception, error)
            else:
                settle(answer.set_result, call)

        start_thread(ask, name="grpc-etcd-password")
        return answer

    def forked(self) -> None:
        """Be a forked child's: a thread that is not there may have held the locks, and waited for a login."""
        self._log_in_lock = threading.Lock()
        self._member_lock = threading.Lock()
        for line in self._members:
            line.forked()

    def _current_members(self) -> tuple[MemberConnection, ...]:
        if self._process != os.getpid():
            with self._member_lock:
                self._forget_the_parents()
        return super()._current_members()

    def _forget_the_parents(self) -> None:
        """Dial again after a fork: older grpcio has closed the channels, and the connections are the parent's."""
        if self._dialer and self._process != os.getpid():
            self._members, self._facts = (), None
        self._process = os.getpid()

    def _make_members(self, dialer: Dialer, facts: Facts) -> tuple[MemberConnection, ...]:
        return tuple(MemberConnection(partial(dialer.sync_channel, each, facts)) for each in dialer.targets)


class _Forks:
    """Reaches the connections of this process in each child that it forks."""

    def __init__(self) -> None:
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        for connection in tuple(self.connections):
            connection.forked()


@cache
def _forks() -> _Forks:
    return _Forks()


def settle(give: Callable[[Any], None], what: object) -> None:
    """Return a future what it waits for, unless it has an end already."""
    with contextlib.suppress(InvalidStateError):
        give(what)
