"""What all feeds of one registry share in one process: a watch hub, and the ranges that decide about every service.

The hub has a few threads and one stream, however many services are followed. All consumers are called by one thread of
it, so what they hold needs no locks. Before a fork every thread leaves gRPC; afterwards the parent's go on where they
were. A forked child makes a registry watch of its own and never touches the inherited one.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from grpc_etcd.discovery.state import Range
from grpc_etcd.etcd import (
    Closed,
    Deleted,
    Disconnected,
    EtcdError,
    Progress,
    Record,
    WatchEvents,
    WatchSnapshot,
    WatchUpdate,
)
from grpc_etcd.etcd.faults import Faults

_LOG = logging.getLogger("grpc_etcd")
_CUT_OFF = "the Etcd that was given to this Registry has been closed"
_MOST_KEYS = 1000  # arbitrary: what is read at most to find names like one that cannot be found


class Subscription(Protocol):
    """What a hub gives for a range that is followed."""

    def close(self) -> None:
        """Follow the range no longer."""

    def await_revision(self, revision: int) -> None:
        """Have Progress delivered as soon as the range is known up to that revision."""

    def list_again(self) -> None:
        """Have the range listed again, after a pause."""


class Hub(Protocol):
    """What is needed of a watch hub."""

    def follow(self, prefix: bytes, on_update: Callable[[WatchUpdate], None]) -> Any:
        """Follow all keys of a prefix; gives a `Subscription`."""

    def follow_key(self, key: bytes, on_update: Callable[[WatchUpdate], None]) -> Any:
        """Follow one key; gives a `Subscription`."""

    def ask_keys(self, prefix: bytes, limit: int, on_keys: Callable[[Sequence[bytes]], None]) -> None:
        """Read the first keys of a prefix once, for the thread that calls the consumers."""

    def run(self, work: Callable[[], object]) -> None:
        """Have something done by the thread that calls the consumers."""

    def hang_up(self) -> None:
        """Begin to leave the network."""

    def wait_quiet(self, timeout_seconds: float) -> bool:
        """Wait until it has been left."""

    def go_on(self) -> None:
        """Enter the network again."""

    def close(self) -> None:
        """End all watches and threads."""


class EtcdReader(Protocol):
    """What is needed of an etcd client to follow services."""

    def watch_hub(self) -> Any:
        """Return a `Hub`."""


class CutOff(Closed):
    """The caller has closed the client before the registry that uses it."""

    remedy = "Close the Registry first, or give it etcd's endpoints, so that it has a client of its own."


class SharedRange:
    """A range that is followed once for all feeds; who joins late is notified first what is known.

    For the hub's thread.
    """

    def __init__(self, which: Range, hub: Hub) -> None:
        self._records: dict[bytes, Record] = {}
        self._known: WatchSnapshot | None = None
        self.lost: Disconnected | None = None  # what was received last, where that is it
        self._members: dict[object, Callable[[WatchUpdate], None]] = {}
        self._awaiting: dict[object, int] = {}
        self.subscription: Subscription = follow(hub, which, self._take)

    def join(self, member: object, on_update: Callable[[WatchUpdate], None]) -> None:
        """Report a member of all news from now on."""
        self._members[member] = on_update
        if self._known:
            on_update(WatchSnapshot(tuple(self._records.values()), self._known.revision, self._known.history))
        if self.lost:
            on_update(self.lost)

    def leave(self, member: object) -> None:
        """Report a member of no news any more."""
        self._members.pop(member, None)
        self._awaiting.pop(member, None)

    def await_revision(self, member: object, revision: int) -> None:
        """Have Progress delivered to a member as soon as the range is known up to that revision."""
        self._awaiting[member] = revision
        self.subscription.await_revision(revision)

    def _take(self, news: WatchUpdate) -> None:
        self.lost = news if isinstance(news, Disconnected) else None
        match news:
            case WatchSnapshot(records):
                self._known = news
                self._records = {record.key: record for record in records}
            case WatchEvents(events, revision) if self._known:
                for event in events:
                    if isinstance(event, Deleted):
                        self._records.pop(event.key, None)
                    else:
                        self._records[event.key] = event.record
                self._known = self._known._replace(revision=revision)
            case Progress(revision) if self._known:
                self._known = self._known._replace(revision=revision)
        for on_update in self._concerned(news):
            on_update(news)

    def _concerned(self, news: WatchUpdate) -> Sequence[Callable[[WatchUpdate], None]]:
        """Return who is to receive.

        Of Progress those alone who await it, or each loss of one service would cost all.
        """
        if isinstance(news, WatchSnapshot):
            self._awaiting.clear()
        elif not isinstance(news, Disconnected):
            reached = [member for member, revision in self._awaiting.items() if revision <= news.revision]
            for member in reached:
                del self._awaiting[member]
            if reached and isinstance(news, Progress) and not news.store:
                return [self._members[member] for member in reached]
        return tuple(self._members.values())


class RegistryWatch:
    """The hub of one registry. `run` may be called from any thread; all else by the hub's own."""

    def __init__(self, etcd: EtcdReader, whereabouts: str) -> None:
        self.whereabouts = whereabouts
        self._hub = _open_hub(etcd)
        self._is_closed = False
        self._shared: dict[Range, SharedRange] = {}
        self._outage: EtcdError | None = None
        self._faults = Faults()
        self.last_seen_at = -math.inf  # when a feed has learned of etcd last, by `time.monotonic()`
        self.lost_at = -math.inf  # when the last outage was noticed, by the same clock

    def __repr__(self) -> str:
        return f"<RegistryWatch of {self.whereabouts}>"

    def run(self, work: Callable[[], object]) -> bool:
        """Have something done by the hub's thread; False when the watch is closed already."""
        try:
            self._hub.run(work)
        except Closed:
            return False
        return True

    def follow(self, which: Range, on_update: Callable[[WatchUpdate], None]) -> Subscription:
        """Follow a range for one consumer alone."""
        return follow(self._hub, which, on_update)

    def ask_keys(self, prefix: bytes, on_keys: Callable[[Sequence[bytes]], None]) -> None:
        """Read the first keys of a prefix once."""
        self._hub.ask_keys(prefix, _MOST_KEYS, on_keys)

    def share(self, which: Range) -> SharedRange:
        """Return a range that is followed for all."""
        if which not in self._shared:
            self._shared[which] = SharedRange(which, self._hub)
        return self._shared[which]

    def note_outage(self, error: EtcdError) -> None:
        """Log once that etcd is unavailable, however many services learn of it."""
        if self._outage is None:
            self.lost_at = time.monotonic()
        if self._faults.is_news(error):
            _LOG.warning(
                "Lost the watch on etcd (%s): %s. %s",
                self.whereabouts,
                error,
                error.remedy,
                extra={"event": "etcd_unavailable"},
            )
        self._outage = error

    def note_contact(self) -> None:
        """Log once that it is in reach again."""
        if self._outage:
            _LOG.info("Watching etcd (%s) again", self.whereabouts, extra={"event": "etcd_available"})
        self._outage = None
        self._faults.clear()

    def find_cut_off(self) -> CutOff | None:
        """Return what to report where somebody else has ended the hub: nothing is delivered any more."""
        is_cut_off = getattr(self._hub, "closed", False) and not self._is_closed
        return CutOff(_CUT_OFF) if is_cut_off else None

    def close(self) -> None:
        """Follow nothing any more."""
        self._is_closed = True
        self._hub.close()

    # Forks.

    def before_fork(self) -> Callable[[float], object]:
        """Get every thread out of gRPC: while one is in it, gRPC skips its fork handlers, and the child crashes."""
        self._hub.hang_up()
        return self._hub.wait_quiet

    def after_fork_in_parent(self) -> None:
        """Follow on."""
        self._hub.go_on()

    def after_fork_in_child(self) -> None:
        """Leave everything to the parent."""


def _open_hub(etcd: EtcdReader) -> Hub:
    try:
        hub: Hub = etcd.watch_hub()
    except Closed as error:
        raise CutOff(_CUT_OFF) from error
    return hub


def follow(hub: Hub, which: Range, on_update: Callable[[WatchUpdate], None]) -> Subscription:
    """Follow a range with a hub."""
    subscription: Subscription = (hub.follow_key if which.is_key else hub.follow)(which.start, on_update)
    return subscription
