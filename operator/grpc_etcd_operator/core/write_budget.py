"""How much a namespace may write to etcd: a token bucket of bytes for each. Pure.

etcd keeps what was overwritten until it is compacted. One Pod with a megabyte of values whose annotation changes on and
on writes gigabytes of history within minutes; then etcd takes no writes of anybody until an admin intervenes (alarm
NOSPACE). That a Pod's keys are bounded does not help: they are rewritten.

New registrations have a bucket of their own, so that values which change on and on keep no new Pod waiting. A write
may go while its bucket is not empty, however large it is; else it gets a time at which it may, behind those of its
namespace that wait already. It is paid for once, however often it has to be tried. If it grows before it is written,
what has come to it waits like any write: thousands of Pods would else ask for little and write much. If it is of the
other bucket by now, since its keys were lost or have come meanwhile, it asks there. What is given up before it might
go is given back: Pods that come and go while they wait would else put off all others further and further. Deletions
cost nothing: each needs a put before.
"""

import math
from dataclasses import dataclass, field

MIB = 1 << 20
KIB = 1 << 10
PRUNE_AT = 64  # buckets, from which on those that are full again are forgotten. Arbitrary


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket's size, and the bytes per second with which it is refilled."""

    burst_bytes: float
    bytes_per_second: float


# A namespace of 1,000 Pods with 10 kB each writes 10 MB when it is rolled out in full, or when a value of all its Pods
# changes: 25 rollouts, and 12 such changes, at once, and then 11 of each in every hour. 100,000 Pods with a key and an
# owner record take 130 MB. The most that one namespace can write in the two hours that an etcd with the hourly
# compaction of the chart's keeps is 384 + 450 MiB, of the 2 GiB that are etcd's default quota.
REGISTRATIONS = Bucket(256 * MIB, 32 * KIB)
REWRITES = Bucket(128 * MIB, 32 * KIB)


@dataclass(slots=True)
class _Reservation:
    group: str
    is_new: bool
    at: float = -math.inf
    paid_bytes: float = 0.0
    admitted_bytes: float = 0.0  # of these, so many may have been written


@dataclass(slots=True)
class WriteBudget:
    """The buckets of all groups, which are namespaces, and who has to wait for them. Times are monotonic seconds."""

    registrations: Bucket = REGISTRATIONS
    rewrites: Bucket = REWRITES
    _full_at: dict[tuple[str, bool], float] = field(default_factory=dict)  # when each bucket is full again
    _reservations: dict[str, _Reservation] = field(default_factory=dict)
    _prune_at: int = PRUNE_AT

    def reserve(self, uid: str, group: str, size: int, now: float, *, is_new: bool) -> float:
        """Return from when on a unit may write so many bytes: in the past or now, or else later.

        `is_new` says that nothing is overwritten.
        """
        if not size:
            return now
        known = self._reservations.get(uid)
        if known is None or known.is_new is not is_new:
            self.give_up(uid)
            known = self._reservations[uid] = _Reservation(group, is_new)
        if size > known.paid_bytes:
            known.at = self._spend(group, size - known.paid_bytes, now, is_new=is_new)
            known.paid_bytes = size
        if known.at <= now:
            known.admitted_bytes = known.paid_bytes
        return known.at

    def end(self, uid: str) -> None:
        """Record that a unit has written what it has paid for."""
        self._reservations.pop(uid, None)

    def give_up(self, uid: str) -> None:
        """Record that a unit no longer has anything to write; give back what it had to wait for."""
        known = self._reservations.pop(uid, None)
        if known and (known.group, known.is_new) in self._full_at:
            unused = known.paid_bytes - known.admitted_bytes
            self._full_at[known.group, known.is_new] -= unused / self._bucket(is_new=known.is_new).bytes_per_second

    def count_waiting(self, now: float) -> int:
        """Count the units that have to wait."""
        return sum(each.at > now for each in self._reservations.values())

    def _spend(self, group: str, size: float, now: float, *, is_new: bool) -> float:
        """Take bytes out of a bucket; return from when on it is not empty, before they are taken."""
        self._prune(now)
        bucket = self._bucket(is_new=is_new)
        full_at = max(now, self._full_at.get((group, is_new), now))
        self._full_at[group, is_new] = full_at + size / bucket.bytes_per_second
        return max(now, full_at - bucket.burst_bytes / bucket.bytes_per_second)

    def _bucket(self, *, is_new: bool) -> Bucket:
        return self.registrations if is_new else self.rewrites

    def _prune(self, now: float) -> None:
        """Forget buckets that are full, once there are twice as many as the last time."""
        if len(self._full_at) >= self._prune_at:
            self._full_at = {of: at for of, at in self._full_at.items() if at > now}
            self._prune_at = max(PRUNE_AT, 2 * len(self._full_at))
