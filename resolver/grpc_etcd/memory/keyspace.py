"""etcd's key space as a state machine: records, revisions and their history, leases, transactions. No I/O, no clock.

It holds to etcd 3.6 and answers refusals in etcd's own words:

Rule 1: a transaction that changes something is one revision, which all its changes share; one that changes nothing is
        none. Reads within it see the changes before them.
Rule 2: it is refused as a whole: for a lease that is not there, for a key that is put twice or put and deleted, and,
        while the space is used up, for any put in either branch.
Rule 3: a lease that expires or is revoked takes all its keys along in one revision.
Rule 4: reads and events at or before the compacted revision are refused; the newest record of a key always stays.

Whoever owns it passes the time in (seconds, on any clock) and calls `expire`.
"""

import copy
import operator
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from grpc_etcd.etcd import Compare, Deleted, Event, LeaseId, Listing, Op, Put, Record, Revision, TransactionResult
from grpc_etcd.etcd.errors import EtcdError, make_error
from grpc_etcd.etcd.model import NO_LEASE
from grpc_etcd.etcd.ops import DeleteOp, GetOp, PutOp

FIRST_REVISION = Revision(1)  # as in an etcd that has just been started
MOST_OPERATIONS = 128  # --max-txn-ops
SHORTEST_TTL = 2  # seconds; etcd raises what is shorter (one and a half election time-outs)
NOWHERE = Record(b"", b"", NO_LEASE, Revision(0), Revision(0), 0)  # what a key that is not there compares as
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


class Page(NamedTuple):
    """Some records of a range, and how many it has in all."""

    records: tuple[Record, ...]
    total: int


@dataclass(slots=True)
class Lease:
    """A lease: the time to live that it was granted, when it expires, and the keys that go with it."""

    ttl_seconds: int
    ends_at: float
    keys: set[bytes] = field(default_factory=set)


def refuse(code: str, words: str) -> EtcdError:
    """Return the error that etcd answers with."""
    return make_error(code, f"etcdserver: {words}")


class Keyspace:
    """All that an etcd holds. `is_full` is the alarm NOSPACE."""

    def __init__(self) -> None:
        self.revision = FIRST_REVISION
        self.compacted = 0
        self.is_full = False
        self.leases: dict[int, Lease] = {}
        self._records: dict[bytes, Record] = {}
        self._keys: list[bytes] = []
        self._events: list[Event] = []
        self._old: dict[bytes, list[Event]] = {}

    def __repr__(self) -> str:
        return f"<Keyspace at {self.revision}: {len(self._records)} keys, {len(self.leases)} leases>"

    def copy(self) -> Self:
        """Return a backup."""
        return copy.deepcopy(self)

    # Reading

    def get(self, key: bytes) -> Record | None:
        """Return the record of a key."""
        return self._records.get(key)

    def range(self, key: bytes, end: bytes = b"", *, revision: int = 0, limit: int = 0) -> Page:
        """Read a range, now or at a revision; without an end that key alone, a zero byte ends with the last key."""
        if revision > self.revision:
            raise refuse("OUT_OF_RANGE", "mvcc: required revision is a future revision")
        if 0 < revision < self.compacted:
            raise refuse("OUT_OF_RANGE", "mvcc: required revision has been compacted")
        if 0 < revision < self.revision:
            found = self._range_before(key, end, revision)
        else:
            found = [self._records[each] for each in self._find(self._keys, key, end)]
        return Page(tuple(found[:limit] if limit else found), len(found))

    def events_since(self, revision: int, key: bytes, end: bytes = b"") -> list[Event]:
        """Return what happened in a range from a revision on."""
        if revision <= self.compacted:
            raise refuse("OUT_OF_RANGE", "mvcc: required revision has been compacted")
        first = bisect_left(self._events, revision, key=_revision_of)
        return [event for event in self._events[first:] if is_within(event.key, key, end)]

    def _range_before(self, key: bytes, end: bytes, revision: int) -> list[Record]:
        found = []
        for each in self._find(sorted(self._old), key, end):
            versions = self._old[each]
            place = bisect_right(versions, revision, key=_revision_of)
            event = versions[place - 1] if place else None
            if isinstance(event, Put):
                found.append(event.record)
        return found

    @staticmethod
    def _find(keys: Sequence[bytes], key: bytes, end: bytes) -> Sequence[bytes]:
        first = bisect_left(keys, key)
        if not end:
            return keys[first : first + 1] if keys[first : first + 1] == [key] else []
        return keys[first:] if end == b"\0" else keys[first : bisect_left(keys, end)]

    # Writing

    def transaction(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TransactionResult:
        """Run `success` when all comparisons hold, else `failure`."""
        self._check(compare, success, failure)
        succeeded = all(map(self._holds, compare))
        chosen = success if succeeded else failure
        for op in chosen:
            if isinstance(op, PutOp) and op.lease:
                self._known(op.lease)
        responses = self._write(chosen)
        return TransactionResult(succeeded, self.revision, responses)

    def events_of(self, revision: int) -> tuple[Event, ...]:
        """Return what a revision changed."""
        return tuple(self._events[bisect_left(self._events, revision, key=_revision_of) :])

    def compact(self, revision: int) -> None:
        """Forget the history before a revision."""
        if revision <= self.compacted:
            raise refuse("OUT_OF_RANGE", "mvcc: required revision has been compacted")
        if revision > self.revision:
            raise refuse("OUT_OF_RANGE", "mvcc: required revision is a future revision")
        self.compacted = revision
        last = bisect_right(self._events, revision, key=_revision_of)
        for key in {event.key for event in self._events[:last]}:  # all others have no older versions any more
            self._forget_before(key, revision)
        del self._events[:last]

    def _forget_before(self, key: bytes, revision: int) -> None:
        versions = self._old[key]
        kept = versions[max(0, bisect_right(versions, revision, key=_revision_of) - 1) :]
        if isinstance(kept[0], Deleted) and kept[0].revision <= revision:
            kept = kept[1:]
        self._old[key] = kept
        if not kept:
            del self._old[key]

    def _check(self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> None:
        if max(len(compare), len(success), len(failure)) > MOST_OPERATIONS:
            raise refuse("INVALID_ARGUMENT", "too many operations in txn request")
        if not all(each.key for each in (*compare, *success, *failure)):
            raise refuse("INVALID_ARGUMENT", "key is not provided")
        for branch in (success, failure):
            _check_twice(branch)
        if self.is_full and any(isinstance(op, PutOp) for op in (*success, *failure)):
            raise refuse("RESOURCE_EXHAUSTED", "mvcc: database space exceeded")

    def _holds(self, compare: Compare) -> bool:
        records = self.range(compare.key, compare.range_end).records
        if not records and compare.target == "value":
            return False
        found = (getattr(record, compare.target) for record in records or (NOWHERE,))
        return all(OPERATORS[compare.operator](each, compare.operand) for each in found)

    def _write(self, chosen: Iterable[Op]) -> tuple[Listing | Revision | int, ...]:
        before, revision = len(self._events), Revision(self.revision + 1)
        responses = [self._run(op, revision) for op in chosen]
        if len(self._events) > before:
            self.revision = revision
        return tuple(responses)

    def _run(self, op: Op, revision: Revision) -> Listing | Revision | int:
        match op:
            case PutOp(key, value, lease):
                self._put(key, value, lease, revision)
                return revision
            case DeleteOp(key, end):
                gone = tuple(self._find(self._keys, key, end))
                for each in gone:
                    self._delete(each, revision)
                return len(gone)
            case GetOp(key, end):
                return Listing(self.range(key, end).records, self.revision)

    def _put(self, key: bytes, value: bytes, lease: int, revision: Revision) -> None:
        old = self._records.get(key)
        if old is None:
            insort(self._keys, key)
        else:
            self._detach(old)
        created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
        self._records[key] = record = Record(key, value, LeaseId(lease), created, revision, version)
        if lease:
            self.leases[lease].keys.add(key)
        self._note(Put(record))

    def _delete(self, key: bytes, revision: Revision) -> None:
        self._detach(self._records.pop(key))
        del self._keys[bisect_left(self._keys, key)]
        self._note(Deleted(key, revision))

    def _detach(self, record: Record) -> None:
        if lease := self.leases.get(record.lease):
            lease.keys.discard(record.key)

    def _note(self, event: Event) -> None:
        self._events.append(event)
        self._old.setdefault(event.key, []).append(event)

    # Leases

    def grant(self, ttl_seconds: int, lease_id: int, now: float) -> int:
        """Grant a lease under an id; return its time to live."""
        if self.is_full:
            raise refuse("RESOURCE_EXHAUSTED", "mvcc: database space exceeded")
        if lease_id in self.leases:
            raise refuse("FAILED_PRECONDITION", "lease already exists")
        ttl = max(SHORTEST_TTL, ttl_seconds)
        self.leases[lease_id] = Lease(ttl, now + ttl)
        return ttl

    def renew(self, lease_id: int, now: float) -> int:
        """Let a lease live on; return its time to live, 0 when there is no such lease."""
        lease = self.leases.get(lease_id)
        if lease is None:
            return 0
        lease.ends_at = now + lease.ttl_seconds
        return lease.ttl_seconds

    def renew_all(self, now: float) -> None:
        """Let all leases live on, as a member does that becomes the leader."""
        for lease_id in self.leases:
            self.renew(lease_id, now)

    def revoke(self, lease_id: int) -> None:
        """Revoke a lease with all its keys."""
        self._known(lease_id)
        keys = sorted(self.leases[lease_id].keys)
        self._write([DeleteOp(key, b"") for key in keys])
        del self.leases[lease_id]

    def expire(self, now: float) -> list[int]:
        """Revoke the leases that have expired; return their ids."""
        ended = [lease_id for lease_id, lease in self.leases.items() if lease.ends_at <= now]
        for lease_id in ended:
            self.revoke(lease_id)
        return ended

    def _known(self, lease: int) -> None:
        if lease not in self.leases:
            raise refuse("NOT_FOUND", "requested lease not found")


def _revision_of(event: Event) -> int:
    return event.revision


def is_within(key: bytes, start: bytes, end: bytes) -> bool:
    """Return whether a key is in a range."""
    return key == start if not end else start <= key and (end == b"\0" or key < end)


def _check_twice(branch: Sequence[Op]) -> None:
    """Refuse a branch that puts a key twice, or puts and deletes it."""
    puts = [op.key for op in branch if isinstance(op, PutOp)]
    deletes = [op for op in branch if isinstance(op, DeleteOp)]
    if len(set(puts)) < len(puts) or any(is_within(key, op.key, op.end) for key in puts for op in deletes):
        raise refuse("INVALID_ARGUMENT", "duplicate key given in txn request")
