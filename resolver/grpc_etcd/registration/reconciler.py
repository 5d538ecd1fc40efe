"""The core of registering: facts in, the next step out. Pure; the worker beside it has the thread, the clock and etcd.

Rule 1: nothing is written before one complete listing of the claimed keys.
Rule 2: every write compares the mod revisions that it was decided on; a refused write brings what is there instead.
Rule 3: deregistrations go first, and never by revoking a lease that still has keys: readers lose events in such bursts.
Rule 4: each write keeps to the client limits of its group; a burst is followed by its flush keys.
Rule 5: what other processes register too is handed over and not deleted (`claims`). A key is deleted only where no
        process key but our own is there: whoever has not learned of another one yet is refused, and reads it then.
Rule 6: an answer to a write or a read is newer than news of the watch from before its revision, which are skipped.
        What became of a write that was not answered, and what a listing from before an answer says, is read again.
Rule 7: a key is gone only once an answer from after the last write to it says so. One that comes under a lease of
        ours and that nobody wants is deregistered, whatever put it there.
Rule 8: an admin's edit is what neither a write of ours, answered or not, nor a handover to us can have put.
Rule 9: a record that etcd refuses to write is tried alone, ever less often: it holds up no other record.
"""

import enum
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from grpc_etcd.layouts.rate_limits import NEVER_WRITTEN, WriteHistory
from grpc_etcd.registration.processes import about, process_key, process_prefix, registered_key
from grpc_etcd.registration.records import (
    Claim,
    Group,
    Held,
    Leases,
    Values,
    Verdict,
    adopt_edit,
    handed_over,
    reads_alike,
    verdict,
)
from grpc_etcd.registration.steps import Flush, Grant, Idle, Leased, Read, Step, Write

# etcd takes 128 operations in a transaction (--max-txn-ops); each key has up to two here, and two reads if refused.
KEYS_PER_TRANSACTION = 32

# Arbitrary: soon enough not to be noticed after a blip, seldom enough for a fleet and an etcd that is down.
FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 5.0


class KeyState(enum.Enum):
    """Where one key stands."""

    PENDING = enum.auto()
    REGISTERED = enum.auto()
    SHARED = enum.auto()  # it is there as claimed, under the lease of another process that registers it too
    TAKEN = enum.auto()
    GONE = enum.auto()


@dataclass(frozen=True, slots=True)
class Trial:
    """A record that etcd has refused to write, maybe for another's sake; it is tried alone from `not_before` on."""

    fault: Exception
    not_before: float
    pause_seconds: float = 0.0

    def again(self, fault: Exception, now: float) -> "Trial":
        """Return what follows when it has been refused alone."""
        pause = min(max(self.pause_seconds * 2, FIRST_RETRY_SECONDS), LAST_RETRY_SECONDS)
        return Trial(fault, now + pause, pause)


@dataclass(slots=True)
class RegistrationReconciler:
    """Wanted claims, what etcd holds, and the lease; `next_step` says what brings the two together.

    All times are seconds of one monotonic clock that the caller reads. Without `shares` there are no process keys.
    """

    leases: Leases = field(default_factory=Leases)
    shares: bool = True
    _claims: dict[bytes, Claim] = field(default_factory=dict)  # with what an admin has edited
    _wishes: dict[bytes, Claim] = field(default_factory=dict)  # the same without
    _leaving: dict[bytes, Claim] = field(default_factory=dict)
    _had: set[bytes] = field(default_factory=set)  # keys that have been under a lease of ours
    _values: defaultdict[bytes, Values] = field(default_factory=lambda: defaultdict(Values))
    _edited: set[bytes] = field(default_factory=set)
    _held: dict[bytes, Held] = field(default_factory=dict)
    _processes: dict[bytes, dict[bytes, Held]] = field(default_factory=dict)
    _listed: frozenset[bytes] = frozenset()
    _listed_at: int = 0  # the revision of that
    _answered: dict[bytes, int] = field(default_factory=dict)  # by key or prefix: as of which revision it was answered
    _doubted: set[bytes] = field(default_factory=set)  # keys to be read, since a write to them was not answered
    _former: dict[bytes, Claim] = field(default_factory=dict)  # what is gone, for the case that it comes again
    _histories: dict[Group, WriteHistory] = field(default_factory=dict)
    _trials: dict[bytes, Trial] = field(default_factory=dict)
    _denied: dict[bytes, Exception] = field(default_factory=dict)  # keys that may not be read, and so are not followed

    @property
    def keys(self) -> frozenset[bytes]:
        """Return every key whose record must be known."""
        return frozenset(self._claims) | frozenset(self._leaving)

    @property
    def known_keys(self) -> frozenset[bytes]:
        """Return the keys, and those that are gone and may come again."""
        return self.keys | self._former.keys()

    @property
    def prefixes(self) -> frozenset[bytes]:
        """Return all that must be followed: the keys that may be, and the process keys beside them."""
        return self.readable | frozenset(map(process_prefix, self.readable) if self.shares else ())

    @property
    def readable(self) -> frozenset[bytes]:
        """Return the keys without those that may not be read."""
        return self.keys - self._denied.keys()

    def deny(self, denied: Mapping[bytes, Exception]) -> bool:
        """Record which keys may not be read; return whether others are to be followed now.

        Where that is all of them there is none to go on with, and nothing is left out.
        """
        before = self.readable
        self._denied = dict(denied) if denied.keys() < self.keys else {}
        self._forget_left()
        return self.readable != before

    def claim(self, claims: Iterable[Claim]) -> None:
        """Want these records, in place of what was wanted, or edited by an admin, under the same keys."""
        for claim in claims:
            self._claims[claim.key] = self._wishes[claim.key] = claim
            self._leaving.pop(claim.key, None)
            self._former.pop(claim.key, None)
            self._edited.discard(claim.key)
            self._trials.pop(claim.key, None)
            if held := self._held.get(claim.key):
                self._note_ours(claim.key, held)
                self._values[claim.key].begin_with(held.value)

    def release(self, keys: Iterable[bytes]) -> None:
        """Want these records no more; those that are ours are deleted, or left to other processes."""
        for key in keys:
            if claim := self._claims.pop(key, None):
                self._leaving[key] = claim
                del self._wishes[key]
                self._trials.pop(key, None)
        self._forget_left()

    def share(self, *, shares: bool) -> None:
        """Keep process keys, or do without them where they may not be written."""
        self.shares = shares
        self._processes.clear()
        self._forget_left()

    def listed(self, keys: frozenset[bytes], records: Mapping[bytes, Held], revision: int) -> None:
        """Record all that etcd held under `keys` at a revision; what was believed before is void.

        Except for what an answer has said of a later one. A listing may be late, or of an etcd that was restored and
        counts from before; so such keys are read.
        """
        self._answered = {key: at for key, at in self._answered.items() if at > revision}
        self._listed, self._listed_at = keys, revision
        self._former = {key: claim for key, claim in self._former.items() if key in keys}
        for key in self._values.keys() - self.keys - keys:
            del self._values[key]
        self._held = {key: held for key, held in self._held.items() if key in keys and self._is_newer(key, revision)}
        self._processes = {
            key: {each: held for each, held in known.items() if self._is_newer(each, revision)}
            for key, known in self._processes.items()
            if key in keys
        }
        for key, record in records.items():
            if not self._is_newer(key, revision):
                self._note(key, record)
            self._want_back(about(key), record)  # then it is read: a restored etcd may have what was long gone
            self._take_reported(key, record)
        self._doubted |= {about(key) for key in self._answered} & self.keys
        self._forget_left()

    def seen(self, key: bytes, held: Held | None, revision: int) -> None:
        """Record what an event of a revision has put under one key, or that it deleted it (None)."""
        if not self._is_newer(key, revision - 1):
            self._note(key, held)
        self._take_reported(key, held)
        if revision >= self._answered.get(key, revision):
            self._answered.pop(key, None)
        self._forget_left()

    def resumed(self, revision: int) -> None:
        """Record that the watch goes on behind a revision. What an answer has said of a later one is read.

        The answer came while there was no stream, and an etcd that was restored since to what the watch knew shows none
        of it: the watch would go on as if nothing had been.
        """
        for key in {about(each) for each, at in self._answered.items() if at > revision}:
            if key in self._former:
                self._leaving[key] = self._former.pop(key)
            if key in self._claims or key in self._leaving:
                self._doubted.add(key)

    def begun(self, write: Write) -> None:
        """Record that a write is on its way: until it is answered, nobody knows what it has done."""
        self._doubted |= {key for key in write.revisions if registered_key(key) is None}
        for key, value in (*write.puts.items(), *write.announced.items()):
            if key in write.puts or about(key) not in self._edited:
                self._values[about(key)].expect(value)  # others hand over what is announced

    def refused(self, write: Write) -> None:
        """Record that etcd has not carried out a write, without a word on what is there."""
        self._doubted.difference_update(write.revisions)
        self._forget_left()

    def put_off(self, write: Write, fault: Exception, now: float) -> bool:
        """Record that etcd refuses what a write holds, and try its records one by one; False: it holds none."""
        keys = [key for key in write.revisions if key in self.keys]
        untried = Trial(fault, now)
        for key in keys:
            self._trials[key] = self._trials.get(key, untried).again(fault, now) if len(keys) == 1 else untried
        return bool(keys)

    def refusal(self, keys: Collection[bytes]) -> Exception | None:
        """Return why one of these records cannot be written, or read."""
        faults = self._denied | {key: trial.fault for key, trial in self._trials.items()}
        return next((fault for key, fault in faults.items() if key in keys), None)

    @property
    def is_anything_denied(self) -> bool:
        """Return whether there are keys that may not be read."""
        return bool(self._denied)

    def read(
        self, keys: Iterable[bytes], prefixes: Iterable[bytes], records: Mapping[bytes, Held], revision: int
    ) -> None:
        """Record what an answer says of these keys and prefixes: what is not among the records is not there."""
        within = tuple(prefixes)
        known = {each for processes in self._processes.values() for each in processes if each.startswith(within)}
        self._answered.update(dict.fromkeys(within, revision))
        for key in {*keys, *known, *records}:
            self._answer(key, records.get(key), revision)
        self._doubted.difference_update(keys)
        self._forget_left({key for key in keys if not self.shares or process_prefix(key) in within})

    def granted(self, lease: int) -> None:
        """Record the lease of this process."""
        self.leases = Leases(lease, self.leases.former)

    def lease_lost(self, lease: int) -> None:
        """Record that etcd no longer knows `lease`."""
        if lease and lease == self.leases.current:
            self.leases = Leases(0, self.leases.former | {lease})

    def wrote(self, write: Write, revision: int, now: float) -> None:
        """Record that a write succeeded at `revision`."""
        for key in write.deletes | write.retracted:
            self._answer(key, None, revision)
        for key, value in (*write.puts.items(), *write.announced.items()):
            self._answer(key, Held(value, write.lease, revision), revision)
        for key, left in write.handovers.items():
            self._answer(key, Held(left.value, left.lease, revision), revision)
        self._doubted.difference_update(write.revisions)
        for key in write.revisions:
            self._trials.pop(key, None)
        self._forget_left(write.revisions)
        self._count(write.group, len(write.puts) + len(write.deletes) + len(write.handovers), now)

    def flushed(self, flush: Flush, now: float) -> None:
        """Record that a flush key was put after a burst."""
        history = self._histories.pop(flush.group, NEVER_WRITTEN).flushed(now)
        if history.flushes:
            self._histories[flush.group] = history

    def standing(self, key: bytes) -> KeyState:
        """Report where a key stands."""
        if key not in self._claims:
            return KeyState.PENDING if key in self._leaving else KeyState.GONE
        match self._verdict(key):
            case Verdict.KEEP:
                return KeyState.REGISTERED
            case Verdict.YIELD:
                return KeyState.SHARED if self._is_shared(key) else KeyState.TAKEN
        return KeyState.PENDING

    def value(self, key: bytes) -> bytes:
        """Return the value that is claimed, with what an admin has edited; empty where nothing is."""
        return self._claims[key].value if key in self._claims else b""

    def is_registered(self, key: bytes) -> bool:
        """Return whether the record is in etcd as claimed, under our lease or that of a process that shares the key."""
        return self.standing(key) in (KeyState.REGISTERED, KeyState.SHARED)

    def is_taken(self, key: bytes) -> bool:
        """Return whether another process took the key from us."""
        return self.standing(key) is KeyState.TAKEN

    def is_gone(self, key: bytes) -> bool:
        """Return whether a released record is known to be out of etcd, or another's."""
        return self.standing(key) is KeyState.GONE

    @property
    def leaving(self) -> frozenset[bytes]:
        """Return the keys that are to be deregistered and not known to be gone."""
        return frozenset(self._leaving)

    @property
    def is_done(self) -> bool:
        """Return whether nothing is claimed, nothing is left to deregister, and no burst is unsettled."""
        return not self.keys and not any(self._is_unsettled(group) for group in self._histories)

    def follow_edits(self) -> None:
        """Make the claims what an admin has edited in keys that others hold.

        Read first what may be reported in parts.
        """
        for key, wish in self._wishes.items():
            held, process = self._held.get(key), self._process_of_holder(key)
            if held is None or process is None or not self._is_known(key):
                continue
            known_at = max(process.revision, self._listed_at, self._answered.get(process_prefix(key), 0))
            if process.value != held.value and known_at < held.revision:
                self._doubted.add(key)  # the holder may have changed both in one transaction
                continue
            edited = adopt_edit(wish, held.value, [process.value])
            if edited.value != self._claims[key].value:
                (self._edited.discard if edited.value == wish.value else self._edited.add)(key)
                self._claim_edited(edited)

    def next_step(self, now: float) -> Step:
        """Return what to do now."""
        self.follow_edits()
        if doubted := frozenset(self._doubted & self._listed & self.keys):
            return self._read(doubted)
        leaving = [key for key in self._leaving if key in self._listed]  # else _forget_left() had dropped it
        puts = [key for key in self._claims if self._verdict(key) is Verdict.PUT or self._is_unannounced(key)]
        if puts and not self.leases.current:
            return Grant()
        self._trials = {key: self._trials[key] for key in (*leaving, *puts) if key in self._trials}
        alone = [([key], []) if key in self._leaving else ([], [key]) for key in self._trials]
        waits = []
        for some_leaving, some_puts in ([self._untried(leaving), self._untried(puts)], *alone):
            for key in {self._group(key): key for key in (*some_leaving, *some_puts)}.values():
                ready = self._ready_at(key)
                if ready <= now:
                    return self._write(self._group(key), some_leaving, some_puts)
                waits.append(ready)
        return self._settle(now, waits)

    # What is known

    def _note(self, key: bytes, held: Held | None) -> None:
        registered = registered_key(key)
        known = self._held if registered is None else self._processes.setdefault(registered, {})
        if held is None:
            known.pop(key, None)
        elif about(key) in self._listed:
            known[key] = held
            self._want_back(about(key), held)
            if registered is None:
                self._adopt_edit(key, held)
                self._note_ours(key, held)

    def _want_back(self, key: bytes, held: Held) -> None:
        """Deregister again what comes under a lease of ours though it was gone: a write may be carried out late."""
        if held.lease in self.leases and key in self._former:
            self._leaving[key] = self._former.pop(key)

    def _take_reported(self, key: bytes, held: Held | None) -> None:
        if held and held.lease == self.leases.current:
            self._values[about(key)].reported(held.value)

    def _note_ours(self, key: bytes, held: Held) -> None:
        if held.lease in self.leases and key in self._claims:
            self._had.add(key)

    def _adopt_edit(self, key: bytes, held: Held) -> None:
        """Make the claim what an admin has edited, in place or by a put without a lease."""
        claim = self._claims.get(key)
        if claim and (held.lease or key in self._had) and self._is_edit(claim, held):
            edited = adopt_edit(claim, held.value, self._values[key])
            if edited.value != claim.value:
                self._edited.add(key)
                self._claim_edited(edited)

    def _claim_edited(self, edited: Claim) -> None:
        """Claim an edit; what was there before it is one too from now on, should an admin put it."""
        self._claims[edited.key] = edited
        self._values[edited.key] = Values(edited.value)

    def _process_of_holder(self, key: bytes) -> Held | None:
        """Return the process key of who holds a key, where that is another one."""
        held = self._held.get(key)
        if held is None or not held.lease or held.lease in self.leases:
            return None
        process = self._processes.get(key, {}).get(process_key(key, held.lease)) if self.shares else None
        return process if process and process.lease == held.lease else None

    def _is_edit(self, claim: Claim, held: Held) -> bool:
        """Return whether nothing that this process wrote, or that others handed over to it, can have put this value.

        What is under a lease that we had before may be news of an etcd whose data were lost since.
        """
        if held.lease not in (0, self.leases.current):
            return False
        return held.value != claim.value and held.value not in self._values[claim.key]

    def _answer(self, key: bytes, held: Held | None, revision: int) -> None:
        self._answered[key] = revision
        self._note(key, held)

    def _is_newer(self, key: bytes, revision: int) -> bool:
        """Return whether an answer has said of a later revision what is under this key."""
        registered = registered_key(key)
        beside = self._answered.get(process_prefix(registered), 0) if registered is not None else 0
        return max(self._answered.get(key, 0), beside) > revision

    def _is_known(self, key: bytes) -> bool:
        return key in self._listed and key not in self._doubted

    def _forget_left(self, answered: Collection[bytes] = ()) -> None:
        """Drop leaving keys of which an answer says that they are gone, or another's that nobody hands back to us.

        What was ours is read where only news say so: they may be of an etcd that has lost its data since.
        What may not be read was never written, unless it was ours before.
        """
        for key in self._denied.keys() & self._leaving.keys() - self._had - self._doubted:
            del self._leaving[key]
        for key in [key for key in self._leaving if self._is_known(key)]:
            if self._is_ours(key) or self._own_process_keys(key):
                continue
            if key in self._had and key not in answered:
                self._doubted.add(key)
                continue
            self._former[key] = self._leaving.pop(key)
            self._had.discard(key)
            self._edited.discard(key)

    def _is_ours(self, key: bytes) -> bool:
        return key in self._held and self._held[key].lease in self.leases

    def _own_process_keys(self, key: bytes) -> frozenset[bytes]:
        known = self._processes.get(key, {}) if self.shares else {}
        return frozenset(each for each, held in known.items() if held.lease in self.leases)

    def _others(self, key: bytes) -> Iterator[tuple[bytes, Held]]:
        """Return the process keys of others, under their leases."""
        known = self._processes.get(key, {}) if self.shares else {}
        return ((each, held) for each, held in known.items() if held.lease and held.lease not in self.leases)

    def _is_shared(self, key: bytes) -> bool:
        """Return whether the process that holds the key registers it as we do."""
        held = self._held[key]
        return reads_alike(self._claims[key], held.value) and any(
            other.lease == held.lease for _, other in self._others(key)
        )

    def _is_unannounced(self, key: bytes) -> bool:
        """Return whether our process key is to be written."""
        if not self.shares or key not in self._listed:
            return False
        held = self._processes.get(key, {}).get(process_key(key, self.leases.current))
        return held is None or held.lease != self.leases.current or held.value != self._wishes[key].value

    def _verdict(self, key: bytes) -> Verdict | None:
        """Judge one claim; None before its record is known."""
        if key not in self._listed or key not in self._claims:
            return None
        return verdict(self._claims[key], self._held.get(key), self.leases, had=key in self._had)

    def _group(self, key: bytes) -> Group:
        return (self._leaving[key] if key in self._leaving else self._claims[key]).group

    # What to do

    def _untried(self, keys: Iterable[bytes]) -> list[bytes]:
        return [key for key in keys if key not in self._trials]

    def _ready_at(self, key: bytes) -> float:
        """Return from when on a key may be written."""
        ready = self._histories.get(self._group(key), NEVER_WRITTEN).next_at
        return max(ready, self._trials[key].not_before) if key in self._trials else ready

    def _read(self, doubted: frozenset[bytes]) -> Read:
        chosen = frozenset(sorted(doubted)[:KEYS_PER_TRANSACTION])
        return Read(chosen, frozenset(map(process_prefix, chosen) if self.shares else ()))

    def _write(self, group: Group, leaving: list[bytes], puts: list[bytes]) -> Write:
        """Put as many of a group's edits into one transaction as its client limits allow, deregistrations first."""
        edits = [key for key in (*leaving, *(puts if self.leases.current else ())) if self._group(key) == group]
        chosen = edits[: min(group.limits.keys_per_transaction, KEYS_PER_TRANSACTION)]
        ours = [key for key in chosen if key in self._leaving and self._is_ours(key)]
        if strays := self._strays(ours):
            return Write(group, self.leases.current, retracted=frozenset(strays), revisions=strays)
        heirs = {key: heir for key in ours if (heir := self._heir(key))}
        wanted = [key for key in chosen if key in self._claims]
        return Write(
            group,
            self.leases.current,
            {key: self._claims[key].value for key in wanted if self._verdict(key) is Verdict.PUT},
            frozenset(ours) - frozenset(heirs),
            {key: self._held[key].revision if key in self._held else 0 for key in chosen}
            | {heir: held.revision for heir, held in heirs.values()},
            {key: self._handover(key, held) for key, (_, held) in heirs.items()},
            {
                process_key(key, self.leases.current): self._wishes[key].value
                for key in wanted
                if self._is_unannounced(key)
            },
            frozenset(each for key in chosen if key in self._leaving for each in self._own_process_keys(key)),
            {
                process_prefix(key): lease
                for key in ours
                if key not in heirs and (lease := self._own_lease(key)) is not None
            },
        )

    def _strays(self, keys: Iterable[bytes]) -> dict[bytes, int]:
        """Return the revisions of process keys without a lease, such as a restored dump has.

        Nobody's, and in the way.
        """
        known = (self._processes.get(key, {}) for key in keys) if self.shares else ()
        strays = ((each, held.revision) for processes in known for each, held in processes.items() if not held.lease)
        return dict(itertools.islice(strays, KEYS_PER_TRANSACTION))

    def _own_lease(self, key: bytes) -> int | None:
        """Return the lease of our process keys, 0 where there are none; None where several make that no condition."""
        if not self.shares:
            return None
        leases = {self._processes[key][each].lease for each in self._own_process_keys(key)}
        return None if len(leases) > 1 else max(leases, default=0)

    def _heir(self, key: bytes) -> tuple[bytes, Held] | None:
        """Choose who gets a key of ours: the newest of the others, as if it had just taken it."""
        return max(self._others(key), key=lambda other: other[1].revision, default=None)

    def _handover(self, key: bytes, heir: Held) -> Leased:
        """Return what the heir gets; an admin's edit may be as young as the answer to a refused write."""
        claim, held = self._leaving[key], self._held[key]
        is_edited_now = self._is_edit(claim, held)
        if not is_edited_now and key not in self._edited:
            return Leased(heir.value, heir.lease)
        claim = adopt_edit(claim, held.value, self._values[key]) if is_edited_now else claim
        meant = [self._processes[key][each].value for each in self._own_process_keys(key)]
        return Leased(handed_over(claim, heir.value, meant), heir.lease)

    def _count(self, group: Group, events: int, now: float) -> None:
        """Remember what was written, for the pace and for the flush key. Process keys have no readers."""
        if events:
            self._histories[group] = self._histories.get(group, NEVER_WRITTEN).wrote(group.limits, events, now)

    def _is_unsettled(self, group: Group) -> bool:
        """Return whether a group's readers wait for the first flush key after two or more events close together."""
        return group.settled is not None and self._histories[group].is_burst

    def _settle(self, now: float, waits: list[float]) -> Step:
        """Touch a group whose burst has been quiet for long enough, or rest until one is due."""
        for group in [group for group, history in self._histories.items() if history.is_forgettable(now)]:
            del self._histories[group]
        for group, history in self._histories.items():
            if group.settled is None or history.flush_at is None:
                continue
            if not history.is_flush_due(now):
                waits.append(history.flush_at)
            elif self.leases.current:
                return Flush(group, group.settled, self.leases.current)
        return Idle(min(waits, default=None))
