"""The client for threads. Every method takes and gives what the core's values say; nothing is decided here.

Made by `make gen` of aio/client.py: edit that one.
"""

import warnings
from collections.abc import Sequence
from typing import Self

import grpc

from grpc_etcd.etcd import calls, model
from grpc_etcd.etcd.blocking.connection import Connection, close_client
from grpc_etcd.etcd.blocking.hub import WatchHub
from grpc_etcd.etcd.blocking.streams import KeepAlive, ListWatch
from grpc_etcd.etcd.client import TIMEOUT_SECONDS, BaseEtcd
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.credentials import Credentials
from grpc_etcd.etcd.dialing import make_dialer
from grpc_etcd.etcd.endpoints import Password, Tls
from grpc_etcd.etcd.model import LeaseId, Listing, Record, Revision
from grpc_etcd.etcd.ops import Op


class Etcd(BaseEtcd[Connection, ListWatch, WatchHub, KeepAlive]):
    """A client of one etcd cluster, for threads. It connects at the first call and may be shared by all threads.

    Each call has `timeout_seconds` to finish and fails with an EtcdError; nothing is tried again but a login whose
    token has expired. Only list_watch() and keep_alive() go on through failures.
    """

    _kinds = ListWatch, WatchHub, KeepAlive

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        user: str = "",
        password: Password = "",
        tls: Tls | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._set_up(
            Connection(make_dialer(endpoints, tls), Credentials(user, password), timeout_seconds), str(endpoints)
        )

    @classmethod
    def from_channel(
        cls,
        channel: grpc.Channel,
        *,
        user: str = "",
        password: Password = "",
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> Self:
        """Use a channel that the application has already; close() leaves it open."""
        client = cls.__new__(cls)
        client._set_up(Connection(None, Credentials(user, password), timeout_seconds, channel), "a channel")  # noqa: SLF001  a constructor
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection and not connection.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def get(self, key: bytes, *, revision: int = 0) -> Record | None:
        """Read one key, now or at a revision; None when it is not there."""
        return self._connection.call(calls.get(key, revision))

    def get_prefix(self, prefix: bytes, *, revision: int = 0, keys_only: bool = False) -> Listing:
        """Read all records of a prefix at one revision, in pages; with `keys_only` their values are empty."""
        return self._connection.run(calls.get_prefix(prefix, revision=revision, keys_only=keys_only))

    def put(self, key: bytes, value: bytes, *, lease: int = 0) -> Revision:
        """Put one key."""
        return self._connection.call(calls.put(key, value, lease))

    def delete(self, key: bytes) -> bool:
        """Delete one key; return whether it existed."""
        return self._connection.call(calls.delete(key)) > 0

    def delete_prefix(self, prefix: bytes) -> int:
        """Delete all keys of a prefix and say how many there were."""
        return self._connection.call(calls.delete_prefix(prefix))

    def transaction(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> model.TransactionResult:
        """Run `success` when all comparisons hold, else `failure`: at most 128 operations, each key put once."""
        return self._connection.call(calls.transaction(compare, success, failure))

    def compact(self, revision: int) -> None:
        """Forget the history before a revision."""
        self._connection.call(calls.compact(revision))

    def lease(self, ttl_seconds: int, lease_id: int = 0) -> LeaseId:
        """Grant a lease; with an id of one's own choice, LeaseExists says that it is there already."""
        return self._connection.call(calls.grant(ttl_seconds, lease_id))

    def revoke(self, lease_id: int) -> None:
        """Revoke a lease: all its keys are deleted in one revision."""
        self._connection.call(calls.revoke(lease_id))

    def leases(self) -> tuple[LeaseId, ...]:
        """List the ids of all leases."""
        return self._connection.call(calls.leases())

    def time_to_live(self, lease_id: int, *, keys: bool = False) -> model.TimeToLive | None:
        """Return how long a lease has left, and which keys it has; None when there is no such lease."""
        return self._connection.call(calls.time_to_live(lease_id, keys=keys))

    def status(self) -> model.ServerStatus:
        """Ask the member at the other end about itself."""
        return self._connection.call(calls.status())

    def close(self) -> None:
        """End all streams and the connection. May be called twice."""
        close_client(self._connection, self._begin_to_close())
