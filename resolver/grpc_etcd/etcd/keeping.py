"""What the keep-alives for threads and for asyncio have in common."""

import abc
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from grpc_etcd.etcd import errors, renewing
from grpc_etcd.etcd.connection import BaseConnection
from grpc_etcd.etcd.list_watch import Failures
from grpc_etcd.etcd.model import LeaseId, State, staleness
from grpc_etcd.etcd.reporting import log_unexpected_renewal
from grpc_etcd.threads import contain

ConnectionT = TypeVar("ConnectionT", bound=BaseConnection[Any])


class BaseRenewalStream(abc.ABC, Generic[ConnectionT]):
    """One keep-alive stream, and the leases that are renewed over it."""

    def __init__(self, owner: object, connection: ConnectionT, on_lost: Callable[[LeaseId], object]) -> None:
        self._owner = owner  # while the stream runs, the client must find the keep-alive to close it
        self._jitter = random.Random().random  # noqa: S311  an application's own sequence is not disturbed
        self._connection = connection
        self._on_lost = on_lost
        self._renewals = renewing.Renewals()
        self._lock = threading.Lock()
        self.state = State(connected=True, stale_since=None)

    def __len__(self) -> int:
        return len(self._renewals)

    @abc.abstractmethod
    def add(self, lease_id: LeaseId, ttl_seconds: float, remaining_seconds: float | None) -> None:
        """Renew a lease from now on."""

    def remove(self, lease_id: LeaseId) -> None:
        """Renew a lease no longer."""
        with self._lock:
            self._renewals.remove(lease_id)

    def renewed_at(self, lease_id: LeaseId) -> float:
        """Return when the last renewal that was answered had been asked for."""
        return self._renewals.renewed_at(lease_id)

    def _receive(self, reply: Any) -> None:
        lease_id = LeaseId(reply.ID)
        with self._lock:
            alive = self._renewals.receive(lease_id, reply.TTL, time.monotonic())
        if not self.state.connected:
            self.state = State(connected=True, stale_since=None)
        if not alive:
            try:
                self._on_lost(lease_id)
            except BaseException as error:  # noqa: BLE001  a consumer's fault concerns no other lease
                log_unexpected_renewal(contain(error))

    def _note_failure(self, error: errors.EtcdError, failures: Failures) -> float:
        """Record why the stream has ended; return for how long to wait before it is opened again."""
        if isinstance(error, errors.TOKEN_DOUBTS):
            self._connection.drop_token()
        since = time.time() if self.state.stale_since is None else self.state.stale_since
        self.state = State(connected=False, stale_since=since, error=error)
        with self._lock:
            if renewing.may_be_refusal(error) and self._renewals.refuse(time.monotonic()):
                return 0.0
        return failures.pause_seconds(error) * (0.5 + 0.5 * self._jitter())


StreamT = TypeVar("StreamT", bound=BaseRenewalStream[Any])


class BaseKeepAlive(Generic[StreamT]):
    """Keeps many leases alive over a few streams."""

    def __init__(self, streams: Sequence[StreamT]) -> None:
        self._streams = streams

    def __len__(self) -> int:
        return sum(len(stream) for stream in self._streams)

    def add(self, lease_id: LeaseId, ttl_seconds: float, *, remaining_seconds: float | None = None) -> None:
        """Renew a lease from now on; return `remaining_seconds` (0: unknown) for one that is not fresh."""
        self._of(lease_id).add(lease_id, ttl_seconds, remaining_seconds)

    def remove(self, lease_id: LeaseId) -> None:
        """Renew a lease no longer; it expires by itself."""
        self._of(lease_id).remove(lease_id)

    def renewed_at(self, lease_id: LeaseId) -> float:
        """Return when (monotonic) the last renewal that was answered had been asked for; 0: none was."""
        return self._of(lease_id).renewed_at(lease_id)

    @property
    def state(self) -> State:
        """The state of the stream that is worst off."""
        return min((stream.state for stream in self._streams), key=staleness)

    def _of(self, lease_id: LeaseId) -> StreamT:
        return self._streams[lease_id % len(self._streams)]
