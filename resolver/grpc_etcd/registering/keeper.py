"""The brain of registering: facts in, the next step out. Pure; the driver beside it has the thread, the clock and etcd.

Rule 1: nothing is written before one complete listing of the claimed keys.
Rule 2: every write compares the mod revisions that it was decided on; a refused write brings what is there instead.
Rule 3: withdrawals go first, and never by revoking a lease that still has keys: readers lose events in such bursts.
Rule 4: each write keeps to what the readers of its group bear; a burst is followed by one settling touch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from grpc_etcd.registering.claims import Claim, Group, Held, Leases, Verdict, verdict
from grpc_etcd.registry.layout import BURST_SECONDS, SETTLE_SECONDS, KeyValue


@dataclass(frozen=True, slots=True)
class Grant:
    """Ask etcd for a lease."""


@dataclass(frozen=True, slots=True)
class Write:
    """One transaction: it succeeds only if each key is still at the revision named (0: absent)."""

    group: Group
    lease: int
    puts: Mapping[bytes, bytes] = field(default_factory=dict)
    deletes: frozenset[bytes] = frozenset()
    revisions: Mapping[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Touch:
    """Put the settling touch of a group."""

    group: Group
    record: KeyValue
    lease: int


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do before `until` (None: before there is news)."""

    until: float | None = None


Step = Grant | Write | Touch | Rest


@dataclass(slots=True)
class _Traffic:
    """What was lately written to a group."""

    last: float = 0.0
    events: int = 0
    next_write: float = 0.0


@dataclass(slots=True)
class Keeper:
    """Wanted claims, what etcd holds, and the lease; `next_step` says what brings the two together.

    All times are seconds of one monotonic clock that the caller reads.
    """

    leases: Leases = field(default_factory=Leases)
    _claims: dict[bytes, Claim] = field(default_factory=dict)
    _leaving: dict[bytes, Group] = field(default_factory=dict)
    _written: dict[bytes, bytes] = field(default_factory=dict)
    _held: dict[bytes, Held] = field(default_factory=dict)
    _listed: frozenset[bytes] = frozenset()
    _traffic: dict[Group, _Traffic] = field(default_factory=dict)

    @property
    def keys(self) -> frozenset[bytes]:
        """Give every key whose record must be known."""
        return frozenset(self._claims) | frozenset(self._leaving)

    def claim(self, claims: Iterable[Claim]) -> None:
        """Want these records, in place of what was wanted, or edited by an admin, under the same keys."""
        for claim in claims:
            self._claims[claim.key] = claim
            self._leaving.pop(claim.key, None)
            if (held := self._held.get(claim.key)) and held.lease in self.leases:
                self._written[claim.key] = held.value

    def release(self, keys: Iterable[bytes]) -> None:
        """Want these records no more; they are deleted if they are ours."""
        for key in keys:
            if claim := self._claims.pop(key, None):
                self._leaving[key] = claim.group
        self._forget_left()

    def listed(self, keys: frozenset[bytes], records: Mapping[bytes, Held]) -> None:
        """Note all that etcd holds under `keys`; what was believed before is void."""
        self._listed = keys
        self._held = {key: record for key, record in records.items() if key in keys}
        self._forget_left()

    def seen(self, key: bytes, held: Held | None) -> None:
        """Note what etcd holds under one key now."""
        if held is None:
            self._held.pop(key, None)
        elif key in self._listed:
            self._held[key] = held
        self._forget_left()

    def granted(self, lease: int) -> None:
        """Note the lease of this process."""
        self.leases = Leases(lease, self.leases.former)

    def lease_lost(self, lease: int) -> None:
        """Note that etcd no longer knows `lease`."""
        if lease and lease == self.leases.current:
            self.leases = Leases(0, self.leases.former | {lease})

    def wrote(self, write: Write, revision: int, now: float) -> None:
        """Note that a write succeeded at `revision`."""
        for key in write.deletes:
            self._held.pop(key, None)
        for key, value in write.puts.items():
            self._held[key] = Held(value, write.lease, revision)
            self._written[key] = value
        self._forget_left()
        self._count(write.group, len(write.puts) + len(write.deletes), now)

    def touched(self, touch: Touch) -> None:
        """Note that a burst has been settled."""
        self._traffic.pop(touch.group, None)

    def is_registered(self, key: bytes) -> bool:
        """Tell whether the record is in etcd, as claimed and under our lease."""
        return self._verdict(key) is Verdict.KEEP

    def is_taken(self, key: bytes) -> bool:
        """Tell whether another process took the key from us."""
        return self._verdict(key) is Verdict.YIELD

    def is_gone(self, key: bytes) -> bool:
        """Tell whether a released record is known to be out of etcd, or another's."""
        return key not in self._claims and key not in self._leaving

    @property
    def is_done(self) -> bool:
        """Tell whether nothing is claimed, nothing is left to withdraw, and no burst is unsettled."""
        return not self.keys and not any(self._is_unsettled(group) for group in self._traffic)

    def next_step(self, now: float) -> Step:
        """Say what to do now."""
        deletes = [key for key in self._leaving if key in self._held]
        puts = [key for key in self._claims if self._verdict(key) is Verdict.PUT]
        if puts and not self.leases.current:
            return Grant()
        waits = []
        for keys in (deletes, puts):
            for group in {self._group(key): None for key in keys}:
                ready = self._traffic.get(group, _Traffic()).next_write
                if ready <= now:
                    return self._write(group, deletes, puts)
                waits.append(ready)
        return self._settle(now, waits)

    def _forget_left(self) -> None:
        """Drop leaving keys that are known to be gone, or to be another's."""
        for key in [key for key in self._leaving if key in self._listed]:
            held = self._held.get(key)
            if held is None or held.lease not in self.leases:
                del self._leaving[key]
                self._written.pop(key, None)

    def _verdict(self, key: bytes) -> Verdict | None:
        """Judge one claim; None before its record is known. What an admin edited becomes the claim."""
        if key not in self._listed or key not in self._claims:
            return None
        judged, self._claims[key] = verdict(self._claims[key], self._held.get(key), self.leases, self._written.get(key))
        return judged

    def _group(self, key: bytes) -> Group:
        return self._leaving[key] if key in self._leaving else self._claims[key].group

    def _write(self, group: Group, deletes: list[bytes], puts: list[bytes]) -> Write:
        """Put as many of a group's edits into one transaction as its readers bear, withdrawals first."""
        edits = [key for key in (*deletes, *(puts if self.leases.current else ())) if self._group(key) == group]
        chosen = edits[: group.pace.keys_per_transaction]
        return Write(
            group,
            self.leases.current,
            {key: self._claims[key].value for key in chosen if key in self._claims},
            frozenset(key for key in chosen if key in self._leaving),
            {key: self._held[key].revision if key in self._held else 0 for key in chosen},
        )

    def _count(self, group: Group, events: int, now: float) -> None:
        """Remember what was written, for the pace and for the settling touch."""
        traffic = self._traffic.setdefault(group, _Traffic())
        if now - traffic.last > BURST_SECONDS:
            traffic.events = 0
        traffic.events += events
        traffic.last = now
        if rate := group.pace.keys_per_second:
            traffic.next_write = now + events / rate

    def _is_unsettled(self, group: Group) -> bool:
        """Tell whether a group's readers need a settling touch: after two or more events close together."""
        return group.settled is not None and group.pace.settling_touch and self._traffic[group].events > 1

    def _settle(self, now: float, waits: list[float]) -> Step:
        """Touch a group whose burst has been quiet for long enough, or rest until one is due."""
        for group in [group for group in self._traffic if self._is_unsettled(group)]:
            due = self._traffic[group].last + SETTLE_SECONDS
            if due > now:
                waits.append(due)
            elif group.settled is not None and self.leases.current:
                return Touch(group, group.settled, self.leases.current)
        return Rest(min(waits, default=None))
