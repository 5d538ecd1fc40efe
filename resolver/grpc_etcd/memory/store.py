"""A key-value store in memory with the methods and the rules of the etcd client that registries use.

What a transaction does is decided in keyspace.py, which holds to etcd; what it changed is delivered to the list-watches
before the next one begins. Leases last until they are revoked: a process that tests itself does not die before it has
finished. Thread-safe; nothing blocks.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from grpc_etcd.etcd import (
    Compare,
    Disconnected,
    EtcdError,
    Event,
    LeaseId,
    Listing,
    Op,
    Progress,
    Record,
    Revision,
    TimeToLive,
    TransactionResult,
    Unavailable,
    WatchEvents,
    WatchSnapshot,
    WatchUpdate,
    ops,
)
from grpc_etcd.etcd.model import disjoint
from grpc_etcd.memory.hub import MemoryHub, MemorySubscription
from grpc_etcd.memory.keyspace import Keyspace

_ALL = b"\0"


class MemoryEtcd:
    """An etcd in memory, in place of `grpc_etcd.etcd.Etcd`; `stop` and `start` begin and end an outage."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._lease_ids = itertools.count(1)
        self._watches: tuple[MemoryWatch, ...] = ()
        self._hubs: tuple[MemoryHub, ...] = ()
        self._history = 0
        self._away: EtcdError | None = None
        self._outages: set[object] = set()  # that have begun and not ended
        self._forget()

    def __repr__(self) -> str:
        return "<MemoryEtcd>"  # what is cached of it is found again by this, whether it is stopped or not

    def _forget(self) -> None:
        self._space = Keyspace()

    # Outages

    def stop(self) -> None:
        """Begin an outage: respond to no request until `start`."""
        self._begin(self)

    def start(self, *, fresh: bool = False) -> None:
        """End all outages, with all records, or with `fresh` without any, as an etcd that has lost its data."""
        self._end(tuple(self._outages), fresh=fresh)

    @contextmanager
    def outage(self, *, loses_data: bool = False) -> Iterator[None]:
        """Respond to no request while the block runs, nor while another such block does that began meanwhile."""
        one = object()
        self._begin(one)
        try:
            yield
        finally:
            self._end((one,), fresh=loses_data)

    def _begin(self, outage: object) -> None:
        with self._lock:
            self._outages.add(outage)
            if not self._away:
                self._away = Unavailable("the etcd in memory has been stopped", "UNAVAILABLE")
                self._introduce_all()

    def _end(self, outages: Iterable[object], *, fresh: bool) -> None:
        with self._lock:
            self._outages.difference_update(outages)
            if fresh:
                self._forget()
                self._history += 1
            if not self._outages:
                self._away = None
                self._introduce_all()

    def _introduce_all(self) -> None:
        for watch in self._watches:
            watch.deliver(self._introduction(watch))
        for hub in self._hubs:
            for subscription in hub.subscriptions:
                self.introduce(subscription)

    # Keys

    def get(self, key: bytes) -> Record | None:
        """Read one key; None if it does not exist."""
        listing = self.transaction((), [ops.get(key)]).responses[0]
        return listing.records[0] if isinstance(listing, Listing) and listing.records else None

    def get_prefix(self, prefix: bytes, *, revision: int = 0) -> Listing:  # noqa: ARG002 - as Etcd has it
        """Read all records of a prefix, whatever the revision: there is no history here."""
        listing = self.transaction((), [ops.get_prefix(prefix)]).responses[0]
        assert isinstance(listing, Listing)  # noqa: S101 - the answer to a get
        return listing

    def put(self, key: bytes, value: bytes, *, lease: int = 0) -> Revision:
        """Put one key."""
        return self.transaction((), [ops.put(key, value, lease)]).revision

    def delete(self, key: bytes) -> bool:
        """Delete one key; return whether it existed."""
        return self.transaction((), [ops.delete(key)]).responses[0] == 1

    def transaction(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TransactionResult:
        """Run `success` when all comparisons hold, else `failure`."""
        with self._reached():
            known = self._space.revision
            result = self._space.transaction(compare, success, failure)
            self._publish(known)
            return result

    # Leases

    def lease(self, ttl_seconds: int) -> LeaseId:
        """Grant a lease, which lasts until it is revoked."""
        with self._reached():
            lease = LeaseId(next(self._lease_ids))
            self._space.grant(ttl_seconds, lease, 0.0)
            return lease

    def revoke(self, lease_id: int) -> None:
        """Revoke a lease: all its keys are deleted in one revision."""
        with self._reached():
            known = self._space.revision
            self._space.revoke(lease_id)
            self._publish(known)

    def leases(self) -> tuple[LeaseId, ...]:
        """List the ids of all leases."""
        with self._reached():
            return tuple(map(LeaseId, self._space.leases))

    def time_to_live(self, lease_id: int) -> TimeToLive | None:
        """Return the TTL with which a lease was granted, and its keys; None if there is no such lease."""
        with self._reached():
            lease = self._space.leases.get(lease_id)
            if lease is None:
                return None
            return TimeToLive(lease.ttl_seconds, lease.ttl_seconds, tuple(sorted(lease.keys)))

    def keep_alive(self, on_lost: Callable[[LeaseId], object], *, streams: int = 1) -> "MemoryKeepAlive":  # noqa: ARG002
        """Return a keep-alive without effect, because leases in memory do not expire."""
        return MemoryKeepAlive()

    # Watches

    def list_watch(self, *prefixes: bytes) -> "MemoryWatch":
        """List some prefixes and follow them until the watch is closed."""
        with self._lock:
            watch = MemoryWatch(disjoint(prefixes), self._forget_watch)
            self._watches = (*self._watches, watch)
            watch.deliver(self._introduction(watch))
            return watch

    def watch_hub(self) -> MemoryHub:
        """Return a watch hub for any number of prefixes and keys, which can be added and removed."""
        with self._lock:
            hub = MemoryHub(self)
            self._hubs = (*self._hubs, hub)
            return hub

    def join(self, hub: MemoryHub, subscription: MemorySubscription) -> None:
        """Send a subscription the current records, and from now on all changes."""
        with self._lock:
            hub.subscriptions = (*hub.subscriptions, subscription)
            self.introduce(subscription)

    def introduce(self, subscription: MemorySubscription) -> None:
        """Send a subscription the current records."""
        with self._lock:
            if self._away:
                subscription.put(Disconnected(self._away, time.time()))
                return
            found = (record for record in self._all() if subscription.holds(record.key))
            subscription.put(WatchSnapshot(tuple(found), self._space.revision, self._history))

    def keys(self, prefix: bytes) -> Sequence[bytes]:
        """List the keys of a prefix."""
        with self._lock:
            return [record.key for record in self._all() if record.key.startswith(prefix)]

    def deliver_progress(self, subscription: MemorySubscription) -> None:
        """Send a subscription the revision up to which everything has been delivered."""
        with self._lock:
            if not self._away:
                subscription.put(Progress(self._space.revision))

    def leave(self, hub: MemoryHub) -> None:
        """Stop sending updates to a hub."""
        with self._lock:
            self._hubs = tuple(each for each in self._hubs if each is not hub)

    def _forget_watch(self, watch: "MemoryWatch") -> None:
        with self._lock:
            self._watches = tuple(each for each in self._watches if each is not watch)

    def _introduction(self, watch: "MemoryWatch") -> WatchUpdate:
        if self._away:
            return Disconnected(self._away, time.time())
        found = (record for record in self._all() if record.key.startswith(watch.prefixes))
        return WatchSnapshot(tuple(found), self._space.revision)

    def _all(self) -> tuple[Record, ...]:
        return self._space.range(_ALL, _ALL).records

    def _publish(self, known: Revision) -> None:
        """Return what has happened since a revision; nobody asks for it again."""
        revision = self._space.revision
        if revision == known:
            return
        events: Sequence[Event] = self._space.events_of(revision)
        self._space.compact(revision)
        for hub in self._hubs:
            hub.publish(events, revision)
        for watch in self._watches:
            for prefix in watch.prefixes:
                if seen := tuple(event for event in events if event.key.startswith(prefix)):
                    watch.deliver(WatchEvents(seen, revision))

    def _reached(self) -> threading.RLock:
        """Return the lock, unless nobody is to be answered."""
        if self._away:
            raise self._away
        return self._lock


class MemoryWatch:
    """An endless iterator of news that another thread may close."""

    def __init__(self, prefixes: tuple[bytes, ...], closed: Callable[["MemoryWatch"], None]) -> None:
        self.prefixes = prefixes
        self._closed = closed
        self._news: queue.SimpleQueue[WatchUpdate | None] = queue.SimpleQueue()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchUpdate:
        news = self._news.get()
        if news is None:
            self._news.put(None)  # it stays closed
            raise StopIteration
        return news

    def deliver(self, news: WatchUpdate) -> None:
        """Return these news next."""
        self._news.put(news)

    def close(self) -> None:
        """End the iteration, also while it waits."""
        self._closed(self)
        self._news.put(None)


class MemoryKeepAlive:
    """Has nothing to do: leases in memory do not expire."""

    def add(self, lease: LeaseId, ttl_seconds: int, remaining_seconds: float = 0) -> None:
        """Keep a lease alive."""

    def renewed_at(self, lease: LeaseId) -> float:  # noqa: ARG002  as the real one is asked
        """Return when a lease was renewed: just now."""
        return time.monotonic()

    def close(self) -> None:
        """Keep none alive any more."""
