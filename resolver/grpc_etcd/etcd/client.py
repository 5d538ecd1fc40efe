"""What the clients for threads and for asyncio have in common: the streams that they give, and end with themselves."""

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from grpc_etcd.etcd.connection import BaseConnection
from grpc_etcd.etcd.errors import Closed
from grpc_etcd.etcd.model import LeaseId

TIMEOUT_SECONDS = 5.0
PROGRESS_SECONDS = 60.0
KEEP_ALIVE_STREAMS = 4

ConnectionT = TypeVar("ConnectionT", bound=BaseConnection[Any])
ListWatchT = TypeVar("ListWatchT")
WatchHubT = TypeVar("WatchHubT")
KeepAliveT = TypeVar("KeepAliveT")
StreamT = TypeVar("StreamT")


class BaseEtcd(Generic[ConnectionT, ListWatchT, WatchHubT, KeepAliveT]):
    """A client of one etcd cluster."""

    _kinds: tuple[Callable[..., ListWatchT], Callable[..., WatchHubT], Callable[..., KeepAliveT]]

    def _set_up(self, connection: ConnectionT, name: str) -> None:
        self._connection = connection
        self._name = name
        self._open_lock = threading.Lock()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<Etcd {self._name}{' closed' if self._connection.closed else ''}>"

    def list_watch(
        self, *prefixes: bytes, start_revision: int = 0, progress_seconds: float = PROGRESS_SECONDS
    ) -> ListWatchT:
        """List some prefixes and follow them forever, over one stream.

        With a `start_revision` there is no listing first: all that happened from that revision on is delivered, for
        those who have listed up to it themselves. If etcd no longer has it, Disconnected says so and a listing follows.

        Every `progress_seconds` etcd is asked how far the stream is, so that a quiet prefix does not fall behind the
        compaction of a busy store.
        """
        return self._keep(self._kinds[0](self._connection, prefixes, progress_seconds, start_revision))

    def watch_hub(
        self,
        *,
        on_error: Callable[[bytes, Exception], None] | None = None,
        progress_seconds: float = PROGRESS_SECONDS,
    ) -> WatchHubT:
        """Return a hub that follows any number of prefixes and keys over one stream; they may come and go.

        `on_error` is called with each exception that a consumer's callback raises, with the first key of its range.
        """
        return self._keep(self._kinds[1](self._connection, progress_seconds, on_error))

    def keep_alive(self, on_lost: Callable[[LeaseId], object], *, streams: int = KEEP_ALIVE_STREAMS) -> KeepAliveT:
        """Return an object that keeps leases alive; it has none yet."""
        return self._keep(self._kinds[2](self._connection, on_lost, streams))

    def _keep(self, stream: StreamT) -> StreamT:
        """Remember a stream, to end it with the client; one that came later would wait forever."""
        with self._open_lock:
            if self._connection.closed:
                raise Closed("the client has been closed")
            self._open.add(stream)
        return stream

    def _begin_to_close(self) -> list[Any]:
        """Return no more streams; return those that are to be ended."""
        with self._open_lock:
            self._connection.closed = True
            return list(self._open)
