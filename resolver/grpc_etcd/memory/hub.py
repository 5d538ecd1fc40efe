"""The watch hub of the store in memory: what `grpc_etcd.etcd.WatchHub` is for a real etcd.

News are queued in the order in which the store changes, and one thread explains to them, as the real hub's does.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from grpc_etcd.etcd import Closed, Disconnected, Event, Revision, State, WatchEvents, WatchUpdate
from grpc_etcd.etcd.reporting import log_unexpected
from grpc_etcd.threads import contain, start_thread

_Work = Callable[[], object]


class Store(Protocol):
    """The store, as its hubs see it."""

    def introduce(self, subscription: "MemorySubscription") -> None:
        """Send a subscription the current records."""

    def keys(self, prefix: bytes) -> Sequence[bytes]:
        """List the keys of a prefix."""

    def deliver_progress(self, subscription: "MemorySubscription") -> None:
        """Send a subscription the revision up to which everything has been delivered."""

    def join(self, hub: "MemoryHub", subscription: "MemorySubscription") -> None:
        """Send a subscription the current records, and from now on all changes."""

    def leave(self, hub: "MemoryHub") -> None:
        """Stop sending updates to a hub."""


class MemorySubscription:
    """One range that is followed."""

    def __init__(
        self, hub: "MemoryHub", store: Store, key: bytes, on_update: Callable[[WatchUpdate], None], *, is_key: bool
    ) -> None:
        self._hub, self._store, self._key, self._on_update, self._is_key = hub, store, key, on_update, is_key
        self.is_closed = False
        self.state = State(connected=False, stale_since=0.0)

    def holds(self, key: bytes) -> bool:
        """Return whether a key is in the range."""
        return key == self._key if self._is_key else key.startswith(self._key)

    def close(self) -> None:
        """Follow the range no longer."""
        self.is_closed = True

    def await_revision(self, revision: int) -> None:  # noqa: ARG002 - everything is delivered at once
        """Have Progress delivered."""
        self._store.deliver_progress(self)

    def list_again(self) -> None:
        """Have everything delivered again."""
        self._store.introduce(self)

    def put(self, news: WatchUpdate) -> None:
        """Queue news."""
        self._hub.put(lambda: self._deliver(news))

    def _deliver(self, news: WatchUpdate) -> None:
        if self.is_closed:
            return
        self.state = make_state(news)
        try:
            self._on_update(news)
        except BaseException as error:  # noqa: BLE001  a consumer's fault concerns that consumer
            log_unexpected(self._key, contain(error))


def make_state(news: WatchUpdate) -> State:
    """Return how fresh a range is after these news."""
    if isinstance(news, Disconnected):
        return State(connected=False, stale_since=news.since, error=news.error)
    return State(connected=True, stale_since=None)


class MemoryHub:
    """Follows ranges of a store in memory, each for its own consumer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self.subscriptions: tuple[MemorySubscription, ...] = ()

    def follow(self, prefix: bytes, on_update: Callable[[WatchUpdate], None]) -> MemorySubscription:
        """List all keys of a prefix and follow them, until the subscription is closed."""
        return self._follow(MemorySubscription(self, self._store, prefix, on_update, is_key=False))

    def follow_key(self, key: bytes, on_update: Callable[[WatchUpdate], None]) -> MemorySubscription:
        """Read one key and follow it, until the subscription is closed."""
        return self._follow(MemorySubscription(self, self._store, key, on_update, is_key=True))

    def ask_keys(self, prefix: bytes, limit: int, on_keys: Callable[[Sequence[bytes]], None]) -> None:
        """Read the first keys of a prefix once, for the thread that calls the consumers."""
        self.put(lambda: on_keys(self._store.keys(prefix)[:limit]))

    def run(self, work: _Work) -> None:
        """Have `work` done by the thread that calls the consumers."""
        self._start()
        self.put(work)

    def put(self, work: _Work) -> None:
        """Queue something to do."""
        self._work.put(work)

    def publish(self, events: Sequence[Event], revision: Revision) -> None:
        """Report each subscription the events of its range."""
        self.subscriptions = tuple(each for each in self.subscriptions if not each.is_closed)
        for subscription in self.subscriptions:
            if seen := tuple(event for event in events if subscription.holds(event.key)):
                subscription.put(WatchEvents(seen, revision))

    def hang_up(self) -> None:
        """Do nothing: there is no network to leave."""

    def wait_quiet(self, timeout_seconds: float) -> bool:  # noqa: ARG002
        """Return at once."""
        return True

    def go_on(self) -> None:
        """Do nothing."""

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._is_closed

    def close(self) -> None:
        """End the thread. No news begin after this."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
        self._store.leave(self)
        self._work.put(None)
        if thread and thread is not threading.current_thread():
            thread.join()

    def _follow(self, subscription: MemorySubscription) -> MemorySubscription:
        self._start()
        self._store.join(self, subscription)
        return subscription

    def _start(self) -> None:
        with self._lock:
            if self._is_closed:
                raise Closed("this watch hub has been closed")
            if self._thread is None:
                self._thread = start_thread(self._run, name="grpc-etcd-memory-hub")

    def _run(self) -> None:
        while (work := self._work.get()) is not None and not self._is_closed:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  whatever it is, all watches go on
                log_unexpected(b"", contain(error))
