"""How much a namespace may write to etcd: a token bucket of bytes for each. Pure.

etcd keeps what was overwritten until it is compacted. One Pod with a megabyte of values whose annotation changes on and
on writes gigabytes of history within minutes; then etcd takes no writes of anybody until an admin intervenes (alarm
NOSPACE). That a Pod's keys are bounded does not help: they are rewritten.

New registrations have a bucket of their own, so that values which change on and on keep no new Pod waiting. A write
may go while its bucket is not empty, however large it is; else it gets a time at which it may, behind those of its
namespace that wait already. It is paid for once, however often it has to be tried. If it grows before it is written,
what has come to it waits like any write: thousands of Pods would else ask for little and write much. If it is of the
other bucket by now, since its keys were lost or have come meanwhile, it asks there. What waits is no debt of the
bucket's: those behind one that gives up may go earlier, and nothing is given back that time has refilled already.
Deletions cost nothing: each needs a put before.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

MIB = 1 << 20
KIB = 1 << 10
EARLIER_SECONDS = 1.0  # what is less is no news to whoever waits. Arbitrary
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


Of = tuple[str, bool]  # a group's bucket, and whether it is that of registrations


@dataclass(slots=True)
class _Reservation:
    of: Of
    at: float = -math.inf
    paid_bytes: float = 0.0


@dataclass(slots=True)
class _Line:
    """What waits for a bucket: bytes by unit, the first first, and all of them."""

    units: dict[str, float] = field(default_factory=dict)
    total: float = 0.0

    def add(self, uid: str, size: float) -> None:
        """Let a unit wait with so many bytes more, behind all others."""
        self.units[uid] = self.units.pop(uid, 0.0) + size
        self.total += size

    def leave(self, uid: str) -> float:
        """Let a unit wait no more; return with how many bytes it has."""
        size = self.units.pop(uid, 0.0)
        self.total = self.total - size if self.units else 0.0
        return size


@dataclass(slots=True)
class WriteBudget:
    """The buckets of all groups, which are namespaces, and who has to wait for them. Times are monotonic seconds."""

    registrations: Bucket = REGISTRATIONS
    rewrites: Bucket = REWRITES
    _full_at: dict[Of, float] = field(default_factory=dict)  # when each bucket is full again, except for what waits
    _reservations: dict[str, _Reservation] = field(default_factory=dict)
    _lines: defaultdict[Of, _Line] = field(default_factory=lambda: defaultdict(_Line))
    _shorter: set[Of] = field(default_factory=set)  # whose lines somebody has left
    _prune_at: int = PRUNE_AT

    def reserve(self, uid: str, group: str, size: int, now: float, *, is_new: bool) -> float:
        """Return from when on a unit may write so many bytes: in the past or now, or else later.

        `is_new` says that nothing is overwritten.
        """
        if not size:
            return now
        known = self._reservations.get(uid)
        if known is None or known.of[1] is not is_new:
            self.give_up(uid)
            known = self._reservations[uid] = _Reservation((group, is_new))
        if size > known.paid_bytes:
            known.at = self._line_up(uid, known.of, size - known.paid_bytes, now)
            known.paid_bytes = size
        if known.at <= now:
            self._spend(known.of, self._leave_line(uid, known.of), now)
        return known.at

    def end(self, uid: str) -> None:
        """Record that a unit has written what it has paid for."""
        self._reservations.pop(uid, None)

    def give_up(self, uid: str) -> None:
        """Record that a unit no longer has anything to write, nor waits."""
        if known := self._reservations.pop(uid, None):
            self._leave_line(uid, known.of)

    def begin_history(self) -> list[tuple[str, float]]:
        """Forget what was written, with an etcd that has lost it; return who waited, and from when on each might write.

        All must be written again soon, and is no tenant's flood. The new etcd has none of the old one's history.
        """
        waiting = [(uid, self._reservations[uid].at) for line in self._lines.values() for uid in line.units]
        self._full_at.clear()
        self._reservations.clear()
        self._lines.clear()
        self._shorter.clear()
        return waiting

    def take_earlier(self, now: float) -> list[tuple[str, float, float]]:
        """Return who may write earlier than it was given, since others have left: from when, and from when now.

        It is the first of its line each time; the next one's turn is when that has left it, too.
        """
        found, shorter = [], self._shorter
        self._shorter = set()
        for of in shorter & self._lines.keys():
            uid = next(iter(self._lines[of].units))
            known, at = self._reservations[uid], self._time_behind(of, 0.0, now)
            if known.at - at > EARLIER_SECONDS:
                found.append((uid, known.at, at))
                known.at = at
        return found

    def count_waiting(self, now: float) -> int:
        """Count the units that have to wait."""
        return sum(each.at > now for each in self._reservations.values())

    def _line_up(self, uid: str, of: Of, size: float, now: float) -> float:
        """Let a unit wait behind all others of its bucket; return until when."""
        at = self._time_behind(of, self._lines[of].total, now)
        self._lines[of].add(uid, size)
        return at

    def _leave_line(self, uid: str, of: Of) -> float:
        if of not in self._lines:
            return 0.0
        size = self._lines[of].leave(uid)
        if size:
            self._shorter.add(of)
        if not self._lines[of].units:
            del self._lines[of]
        return size

    def _time_behind(self, of: Of, size: float, now: float) -> float:
        """Return from when on a bucket is not empty, once so many bytes have been taken out."""
        bucket = self._bucket(is_new=of[1])
        full_at = max(now, self._full_at.get(of, now)) + size / bucket.bytes_per_second
        return max(now, full_at - bucket.burst_bytes / bucket.bytes_per_second)

    def _spend(self, of: Of, size: float, now: float) -> None:
        """Take bytes out of a bucket."""
        if size:
            self._prune(now)
            full_at = max(now, self._full_at.get(of, now))
            self._full_at[of] = full_at + size / self._bucket(is_new=of[1]).bytes_per_second

    def _bucket(self, *, is_new: bool) -> Bucket:
        return self.registrations if is_new else self.rewrites

    def _prune(self, now: float) -> None:
        """Forget buckets that are full, once there are twice as many as the last time."""
        if len(self._full_at) >= self._prune_at:
            self._full_at = {of: at for of, at in self._full_at.items() if at > now}
            self._prune_at = max(PRUNE_AT, 2 * len(self._full_at))
