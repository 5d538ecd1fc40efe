"""What the watch hubs for threads and for asyncio have in common: they carry out what the state machine says."""

import abc
import random
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar, assert_never

from grpc_etcd.etcd import errors, model
from grpc_etcd.etcd.connection import BaseConnection
from grpc_etcd.etcd.hub import commands
from grpc_etcd.etcd.hub.core import Core
from grpc_etcd.etcd.hub.subscription import Subscription
from grpc_etcd.etcd.hub.watch import Watch
from grpc_etcd.etcd.model import State, WatchUpdate
from grpc_etcd.etcd.reporting import log_unexpected, report_safely
from grpc_etcd.threads import contain

ConnectionT = TypeVar("ConnectionT", bound=BaseConnection[Any])


class HubDriver(abc.ABC, Generic[ConnectionT]):
    """Follows ranges of keys, each for its own consumer, over one stream."""

    def __init__(
        self,
        connection: ConnectionT,
        progress_seconds: float,
        on_error: Callable[[bytes, Exception], None] | None,
        listings: int,
    ) -> None:
        self._connection = connection
        self._on_error = report_safely(on_error) if on_error else log_unexpected
        jitter = random.Random().random  # noqa: S311  an application's own sequence is not disturbed
        self._core = Core(time.time, jitter, progress_seconds, listings)
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<WatchHub {self._core.state}>"

    @property
    def state(self) -> State:
        """How fresh the stream that all share is."""
        return self._core.state

    @property
    def closed(self) -> bool:
        """Whether it has been closed, by itself or with its client."""
        return self._is_closed

    @property
    def history(self) -> int:
        """How often etcd turned out to hold another history than the one that was followed."""
        return self._core.history

    def follow(self, prefix: bytes, on_update: Callable[[WatchUpdate], None]) -> Subscription:
        """List all keys of a prefix and follow them, until the subscription is closed."""
        return self._follow(model.range_start(prefix), model.prefix_end(prefix), on_update)

    def follow_key(self, key: bytes, on_update: Callable[[WatchUpdate], None]) -> Subscription:
        """Read one key and follow it, until the subscription is closed."""
        return self._follow(key, b"", on_update)

    @abc.abstractmethod
    def _follow(self, key: bytes, end: bytes, on_update: Callable[[WatchUpdate], None]) -> Subscription:
        """Follow a range."""

    def _advance(self) -> None:
        """Do what is due."""
        while due := self._core.advance(time.monotonic()):
            for command in due:
                self._carry_out(command)

    def _abandon(self, error: Exception) -> None:
        """Go on after a fault that nobody foresaw: it must not end the hub, nor the other watches."""
        self._on_error(b"", error)
        self._core.abandon(errors.EtcdError(f"unexpected: {error}"), time.monotonic())

    def _carry_out(self, command: commands.Command) -> None:
        match command:
            case commands.Deliver(watch, news):
                self._deliver(watch, news)
            case commands.Write(request):
                self._write(request)
            case commands.Ask():
                self._begin_to_ask(command)
            case commands.Open(number):
                self._open(number)
            case commands.HangUp(fault):
                self._end_stream(fault)
            case commands.LogIn():
                self._connection.drop_token()
            case _:
                assert_never(command)

    def _deliver(self, watch: Watch, news: WatchUpdate) -> None:
        if self._is_closed or watch.is_closed:
            return
        try:
            watch.on_update(news)
        except BaseException as error:  # noqa: BLE001  a consumer's fault concerns that consumer
            self._on_error(watch.key, contain(error))
            self._core.fault(watch, time.monotonic())

    @abc.abstractmethod
    def _write(self, request: Any) -> None:
        """Send a request on the stream, which may not be open yet."""

    @abc.abstractmethod
    def _begin_to_ask(self, ask: commands.Ask) -> None:
        """Begin to make unary calls."""

    @abc.abstractmethod
    def _open(self, number: int) -> None:
        """Begin to open the stream of this number, and to read it."""

    @abc.abstractmethod
    def _end_stream(self, fault: errors.EtcdError | None = None) -> None:
        """End the stream; a fault is reported to the link."""
