"""The way to etcd for threads: the current channel, the token, unary calls and streams. Thread-safe."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from grpc_etcd.etcd import errors
from grpc_etcd.etcd.calls import Call, Method, Steps
from grpc_etcd.etcd.credentials import HAS_LEADER, Credentials, Metadata
from grpc_etcd.etcd.dialing import Dialer, Facts, Lookout
from grpc_etcd.etcd.translating import translate

T = TypeVar("T")


class Line:
    """One channel with its callables, and the facts that it was made from."""

    def __init__(self, channel: grpc.Channel, facts: Facts | None) -> None:
        self.channel = channel
        self.facts = facts
        self.process = os.getpid()
        self._unary: dict[str, Any] = {}

    def unary(self, method: Method) -> Any:
        """Return the callable of a unary method."""
        known = self._unary.get(method.path)
        if known is None:
            known = self.channel.unary_unary(method.path, method.serialize, method.parse)
            self._unary[method.path] = known
        return known

    def stream(self, method: Method) -> Callable[..., Any]:
        """Return the callable of a streaming method."""
        return self.channel.stream_stream(method.path, method.serialize, method.parse)


class Link:
    """What a client and its streams share."""

    def __init__(
        self,
        dialer: Dialer | None,
        credentials: Credentials,
        timeout_seconds: float,
        channel: grpc.Channel | None = None,
    ) -> None:
        self._dialer = dialer
        self._lookout = Lookout()
        self._credentials = credentials
        self._timeout_seconds = timeout_seconds
        self._line = Line(channel, None) if channel else None
        self._line_lock = threading.Lock()
        self._log_in_lock = threading.Lock()
        self.closed = False

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
        """Make one call; log in before it where needed, and once more when the token is refused."""
        token = self._log_in()
        try:
            return self._send(call, token)
        except errors.TokenRefused:
            if not self._credentials.user:
                raise
            self._credentials.drop(token)
            return self._send(call, self._log_in())

    def stream(self, method: Method, requests: Iterator[Any]) -> Any:
        """Open a stream without a deadline."""
        metadata = (*self._log_in(), *HAS_LEADER)
        stream = self._current_line().stream(method)
        try:
            return stream(requests, metadata=metadata)
        except ValueError as error:  # grpcio's answer on a channel that was closed meanwhile
            raise errors.Closed(str(error)) from error

    def drop_token(self) -> None:
        """Log in again before the next call."""
        self._credentials.drop(self._credentials.token)

    def suspect(self) -> None:
        """Look soon whether files or names have changed."""
        self._lookout.suspect()

    def close(self) -> None:
        """Close the channel, unless it was adopted."""
        with self._line_lock:
            self.closed = True
            if self._line and self._dialer:
                self._line.channel.close()
            self._line = None

    def _send(self, call: Call[T], metadata: Metadata) -> T:
        unary = self._current_line().unary(call.method)
        try:
            if call.meanwhile is None:
                reply = unary(call.request, timeout=self._timeout_seconds, metadata=metadata)
            else:
                future = unary.future(call.request, timeout=self._timeout_seconds, metadata=metadata)
                call.meanwhile()
                reply = future.result()
        except grpc.RpcError as error:
            self._lookout.suspect()
            raise self._explain(error) from error
        except ValueError as error:  # grpcio's answer on a channel that was closed meanwhile
            raise errors.Closed(str(error)) from error
        return call.read(reply)

    def _explain(self, error: grpc.RpcError) -> errors.EtcdError:
        return errors.Closed("the client was closed during the call") if self.closed else translate(error)

    def _log_in(self) -> Metadata:
        token = self._credentials.token
        if token is not None:
            return token
        with self._log_in_lock:
            token = self._credentials.token
            return self._credentials.accept(self._fetch_token()) if token is None else token

    def _fetch_token(self) -> str:
        try:
            return self._send(self._credentials.log_in(), ())
        except errors.AuthNotEnabled:
            return ""

    def _current_line(self) -> Line:
        with self._line_lock:
            if self.closed:
                raise errors.Closed("the client has been closed")
            if self._dialer and self._line and self._line.process != os.getpid():
                self._line = None  # after a fork: older grpcio has closed it, and the connection is the parent's
            now = time.monotonic()
            if self._line is None or (self._dialer and self._dialer.may_change and self._lookout.is_due(now)):
                self._line = self._look(now)
            return self._line

    def _look(self, now: float) -> Line:
        """Return a line for the facts as they are; the old one ends with its last stream."""
        assert self._dialer is not None  # noqa: S101  an adopted channel is never replaced
        self._lookout.looked(now)
        try:
            facts = self._dialer.facts()
        except errors.EtcdError:
            if self._line is None:
                raise
            return self._line  # files are being replaced right now, or no name server answers
        if self._line and self._line.facts == facts:
            return self._line
        return Line(self._dialer.sync_channel(facts), facts)
