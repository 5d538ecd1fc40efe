"""The client for asyncio. Every method takes and gives what the core's values say; nothing is decided here.

`make gen` makes the client for threads of it.
"""

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

import grpc.aio

from grpc_etcd.etcd import calls, model
from grpc_etcd.etcd.aio.hub import WatchHub
from grpc_etcd.etcd.aio.link import Link, close_client
from grpc_etcd.etcd.aio.streams import KeepAlive, ListWatch
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.credentials import Credentials
from grpc_etcd.etcd.dialing import make_dialer
from grpc_etcd.etcd.endpoints import Password, Tls
from grpc_etcd.etcd.errors import Closed
from grpc_etcd.etcd.model import LeaseId, Listing, Record, Revision
from grpc_etcd.etcd.ops import Op

StreamT = TypeVar("StreamT", ListWatch, KeepAlive, WatchHub)
TIMEOUT_SECONDS = 5.0
PROGRESS_SECONDS = 60.0
KEEP_ALIVE_STREAMS = 4


class Etcd:
    """A client of one etcd cluster, for asyncio. It connects at the first call and belongs to one event loop.

    Each call has `timeout_seconds` to finish and fails with an EtcdError; nothing is tried again but a log-in whose
    token has run out. Only list_watch() and keep_alive() go on through failures.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        user: str = "",
        password: Password = "",
        tls: Tls | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._set_up(Link(make_dialer(endpoints, tls), Credentials(user, password), timeout_seconds), str(endpoints))

    @classmethod
    def from_channel(
        cls,
        channel: grpc.aio.Channel,
        *,
        user: str = "",
        password: Password = "",
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> Self:
        """Use a channel that the application has already; close() leaves it open."""
        client = cls.__new__(cls)
        client._set_up(Link(None, Credentials(user, password), timeout_seconds, channel), "a channel")  # noqa: SLF001  a constructor
        return client

    def _set_up(self, link: Link, name: str) -> None:
        self._link = link
        self._name = name
        self._open_lock = threading.Lock()
        self._open: weakref.WeakSet[ListWatch | KeepAlive | WatchHub] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<Etcd {self._name}{' closed' if self._link.closed else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link and not link.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            # for threads: self.close()

    async def get(self, key: bytes, *, revision: int = 0) -> Record | None:
        """Read one key, now or at a revision; None when it is not there."""
        return await self._link.call(calls.get(key, revision))

    async def get_prefix(self, prefix: bytes, *, revision: int = 0, keys_only: bool = False) -> Listing:
        """Read all records of a prefix at one revision, in pages; with `keys_only` their values are empty."""
        return await self._link.run(calls.get_prefix(prefix, revision=revision, keys_only=keys_only))

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> Revision:
        """Put one key."""
        return await self._link.call(calls.put(key, value, lease))

    async def delete(self, key: bytes) -> bool:
        """Delete one key and say whether it was there."""
        return await self._link.call(calls.delete(key)) > 0

    async def delete_prefix(self, prefix: bytes) -> int:
        """Delete all keys of a prefix and say how many there were."""
        return await self._link.call(calls.delete_prefix(prefix))

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> model.TransactionResult:
        """Run `success` when all comparisons hold, else `failure`: at most 128 operations, each key put once."""
        return await self._link.call(calls.transaction(compare, success, failure))

    async def compact(self, revision: int) -> None:
        """Forget the history before a revision."""
        await self._link.call(calls.compact(revision))

    async def lease(self, ttl_seconds: int, lease_id: int = 0) -> LeaseId:
        """Grant a lease; with an id of one's own choice, LeaseExists says that it is there already."""
        return await self._link.call(calls.grant(ttl_seconds, lease_id))

    async def revoke(self, lease_id: int) -> None:
        """Revoke a lease: all its keys are deleted in one revision."""
        await self._link.call(calls.revoke(lease_id))

    async def leases(self) -> tuple[LeaseId, ...]:
        """List the ids of all leases."""
        return await self._link.call(calls.leases())

    async def time_to_live(self, lease_id: int, *, keys: bool = False) -> model.TimeToLive | None:
        """Say how long a lease has left, and which keys it has; None when there is no such lease."""
        return await self._link.call(calls.time_to_live(lease_id, keys=keys))

    async def status(self) -> model.ServerStatus:
        """Ask the member at the other end about itself."""
        return await self._link.call(calls.status())

    def list_watch(
        self, *prefixes: bytes, start_revision: int = 0, progress_seconds: float = PROGRESS_SECONDS
    ) -> ListWatch:
        """List some prefixes and follow them for ever, over one stream.

        With a `start_revision` there is no listing first: all that happened from that revision on is told, for those
        who have listed up to it themselves. If etcd no longer has it, Lost says so and a listing follows.

        Every `progress_seconds` etcd is asked how far the stream is, so that a quiet prefix does not fall behind the
        compaction of a busy store.
        """
        return self._keep(ListWatch(self._link, prefixes, progress_seconds, start_revision))

    def watch_hub(
        self,
        *,
        on_error: Callable[[bytes, Exception], None] | None = None,
        progress_seconds: float = PROGRESS_SECONDS,
    ) -> WatchHub:
        """Return a hub that follows any number of prefixes and keys over one stream; they may come and go.

        `on_error` is told of each exception that a consumer's callback raises, with the first key of its range.
        """
        return self._keep(WatchHub(self._link, progress_seconds, on_error))

    def keep_alive(self, on_lost: Callable[[LeaseId], object], *, streams: int = KEEP_ALIVE_STREAMS) -> KeepAlive:
        """Return an object that keeps leases alive; it has none yet."""
        return self._keep(KeepAlive(self._link, on_lost, streams))

    def _keep(self, stream: StreamT) -> StreamT:
        """Remember a stream, to end it with the client; one that came later would wait for ever."""
        with self._open_lock:
            if self._link.closed:
                raise Closed("the client has been closed")
            self._open.add(stream)
        return stream

    async def close(self) -> None:
        """End all streams and the connection. May be called twice."""
        with self._open_lock:
            self._link.closed = True
            streams = list(self._open)
        await close_client(self._link, streams)
