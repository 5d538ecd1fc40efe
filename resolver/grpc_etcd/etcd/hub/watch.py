"""One range that is followed: how far it is, and what was seen in it."""

import heapq
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, NamedTuple

from grpc_etcd.etcd import calls, model
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.faults import Faults
from grpc_etcd.etcd.messages import message
from grpc_etcd.etcd.model import Disconnected, Listing, Record, Revision, State, WatchEvents, WatchUpdate

# How many of a range's newest records are remembered: as many keys may come and go after the record that proves that
# nothing older was lost. Arbitrary.
RECENT_RECORDS = 8
# Failures that are further apart than this are not in a row. Arbitrary.
CALM_SECONDS = 60.0


class Witness(NamedTuple):
    """The newest thing seen in a range: a key, its record (None: deleted), and when that happened."""

    key: bytes
    record: Record | None
    revision: int


class Stage(Enum):
    """How far a range is."""

    WAITING = auto()  # for its turn to be listed, or for a pause to end
    LISTING = auto()
    READY = auto()  # listed, and not on the stream
    CREATING = auto()  # asked for on the stream
    LIVE = auto()
    CLOSED = auto()


class Watch:
    """One range that is followed, and what is known of it. `state` may be read from any thread."""

    def __init__(self, key: bytes, end: bytes, on_update: Callable[[WatchUpdate], None], since: float) -> None:
        self.key, self.end, self.on_update = key, end, on_update
        self.is_closed = False  # set by whoever closes, at once and in any thread: no news begins after that
        self.stage = Stage.WAITING
        self.id = 0
        self.next = 0  # the first revision that is not yet reported; 0 must be listed
        self.created_at = 0  # the revision from which on etcd was asked for events
        self.known_at = 0  # etcd had this revision when it knew of the watch at the latest
        self.witness: Witness | None = None
        self._recent: dict[bytes, Record] = {}  # the newest records that are still there, the newest last
        self.is_proven = False  # it was on a stream since it was listed
        self.epoch = 0  # when it was listed
        self.has_resumed = False
        self.has_reopened = False
        self.is_alone = False  # it is listed by a call of its own
        self.late = 0  # how often in a row its listing did not come in time
        self.failures = 0
        self.faults = 0
        self.faulted = -CALM_SECONDS
        self.due = 0.0
        self._state = State(connected=False, stale_since=since)
        self._faults = Faults()

    def __repr__(self) -> str:
        return f"<Watch {self.key!r} {self.stage.name} next={self.next}>"

    @property
    def revision(self) -> Revision:
        """The revision up to which all is delivered."""
        return Revision(max(self.next - 1, 0))

    @property
    def state(self) -> State:
        """How fresh the news of the range are."""
        known = self._state
        return State(known.connected, known.stale_since, known.error, self.revision)

    def connect(self) -> None:
        """Record that the range is synced."""
        self._faults.clear()
        if not self._state.connected:
            self._state = State(connected=True, stale_since=None)

    def lose(self, error: EtcdError, now: float) -> Disconnected | None:
        """Record that it is not; return what is to be delivered, unless that was delivered already."""
        known = self._state
        since = now if known.stale_since is None else known.stale_since
        self._state = State(connected=False, stale_since=since, error=error)
        return Disconnected(error, since) if self._faults.is_change(error) else None

    def note_listing(self, listing: Listing, epoch: int) -> None:
        """Take a listing."""
        self.next, self.is_proven, self.epoch = listing.revision + 1, False, epoch
        newest = heapq.nlargest(RECENT_RECORDS, listing.records, key=lambda record: record.mod_revision)
        self._recent = {record.key: record for record in reversed(newest)}
        self.witness = self.newest_record

    def take_events(self, messages: Any) -> WatchEvents | None:
        """Take a reply's events, without those that were delivered before."""
        first = self.next
        events = tuple(event for event in map(calls.make_event, messages) if event.revision >= first)
        if not events:
            return None
        for event in events:
            self._remember(event)
        last = events[-1]
        self.next = last.revision + 1
        self.witness = Witness(last.key, last.record if isinstance(last, model.Put) else None, last.revision)
        return WatchEvents(events, last.revision)

    @property
    def newest_record(self) -> Witness | None:
        """The newest record that is still there, if it is remembered."""
        record = next(reversed(self._recent.values()), None)
        return Witness(record.key, record, record.mod_revision) if record else None

    def _remember(self, event: model.Event) -> None:
        self._recent.pop(event.key, None)
        if isinstance(event, model.Put):
            self._recent[event.key] = event.record
            if len(self._recent) > RECENT_RECORDS:
                del self._recent[next(iter(self._recent))]

    def forget(self) -> None:
        """Forget all that was seen, so that it is listed again."""
        self.next, self.witness = 0, None
        self._recent.clear()

    def create_request(self) -> Any:
        """Return the request that watches the range from where it is."""
        return message("WatchRequest")(
            create_request=message("WatchCreateRequest")(
                key=self.key, range_end=self.end, start_revision=self.created_at, progress_notify=True, watch_id=self.id
            )
        )
