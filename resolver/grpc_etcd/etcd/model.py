"""The values that come out of etcd: records, events, listings, news of a list-watch, and what a state looks like.

All are immutable. Keys and values are bytes, revisions and lease ids are ints (0 means none). The high-volume ones are
named tuples, which cost a third of a frozen dataclass to make.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NewType, TypeAlias

from grpc_etcd.etcd.errors import EtcdError

LeaseId = NewType("LeaseId", int)
Revision = NewType("Revision", int)

NO_LEASE = LeaseId(0)
LATEST = Revision(0)


class Record(NamedTuple):
    """What etcd holds for a key: its value, its lease (0: none), and when it was written."""

    key: bytes
    value: bytes
    lease: LeaseId
    create_revision: Revision
    mod_revision: Revision
    version: int


class Put(NamedTuple):
    """An event: the record as it now is."""

    record: Record

    @property
    def key(self) -> bytes:
        """The key that was put."""
        return self.record.key

    @property
    def revision(self) -> Revision:
        """The revision of the put."""
        return self.record.mod_revision


class Deleted(NamedTuple):
    """An event: the key is gone, by a delete or with its lease."""

    key: bytes
    revision: Revision


Event: TypeAlias = Put | Deleted


class Listing(NamedTuple):
    """All records of a prefix at one revision, sorted by key."""

    records: tuple[Record, ...]
    revision: Revision


class TransactionResult(NamedTuple):
    """What a transaction did.

    `responses` answers each operation that ran, in order: a Listing for a get, the number of keys for a delete, the
    revision for a put.
    """

    succeeded: bool
    revision: Revision
    responses: tuple["Listing | Revision | int", ...]


class TimeToLive(NamedTuple):
    """A lease's remaining and granted seconds, and its keys where they were asked for."""

    remaining_seconds: int
    granted_seconds: int
    keys: tuple[bytes, ...]


class ServerStatus(NamedTuple):
    """What the member that answered says of itself."""

    version: str
    cluster_id: int
    member_id: int
    leader_id: int
    revision: Revision
    database_bytes: int
    errors: tuple[str, ...]


class WatchSnapshot(NamedTuple):
    """News: the complete state at a revision. It replaces everything the consumer held.

    `history` grows whenever etcd turned out to hold another history than the one that was followed (it was restored, or
    lost its data): revisions from before then say nothing any more, and the consumer forgets them too.
    """

    records: tuple[Record, ...]
    revision: Revision
    history: int = 0


class WatchEvents(NamedTuple):
    """News: events in the order of their revisions, all of one prefix. `revision` is the last one's."""

    events: tuple[Event, ...]
    revision: Revision


class Progress(NamedTuple):
    """News: synced up to this revision.

    Also the first news after a `Disconnected` when nothing has to be listed again. Then `store` is the revision that
    etcd had reached when the watch went on (0: nothing was missed): events up to there come next, of what has happened
    meanwhile, and a key that comes with them may be gone by then.
    """

    revision: Revision
    store: Revision = LATEST


class Disconnected(NamedTuple):
    """News: not synced since that time (Unix seconds), and why. The list-watch goes on trying by itself, forever."""

    error: EtcdError
    since: float


WatchUpdate: TypeAlias = WatchSnapshot | WatchEvents | Progress | Disconnected


@dataclass(frozen=True, slots=True)
class State:
    """How fresh a long-lived thing is.

    `stale_since` (Unix seconds) is None while connected; `error` says why not. Before the first success both a
    `stale_since` (the start) and no error are possible: still connecting.
    """

    connected: bool
    stale_since: float | None
    error: EtcdError | None = None
    revision: Revision = LATEST


def staleness(state: State) -> tuple[bool, float]:
    """Order states from the worst to the best."""
    return state.connected, state.stale_since or 0.0


def prefix_end(prefix: bytes) -> bytes:
    """Return the `range_end` that makes a range of all keys with this prefix.

    A zero byte means "to the end of the key space".
    """
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\x00"


def range_start(prefix: bytes) -> bytes:
    """Return the first key of a prefix's range; etcd knows no empty key."""
    return prefix or b"\x00"


def disjoint(prefixes: Sequence[bytes]) -> tuple[bytes, ...]:
    """Sort prefixes and drop those that another one covers, so that no event comes twice."""
    kept: list[bytes] = []
    for prefix in sorted(set(prefixes)):
        if not (kept and prefix.startswith(kept[-1])):
            kept.append(prefix)
    return tuple(kept)
