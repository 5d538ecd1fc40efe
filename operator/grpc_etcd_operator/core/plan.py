"""From desired and current to the edits of one owner: the heart of the operator, and pure.

For each key that an owner wants, against what etcd holds (`L` is the owner's lease):

    current                          | then
    ---------------------------------+------------------------------------------------------------
    nothing                          | put
    under L, same value              | nothing: an unchanged value is never rewritten
    under L, other value             | put
    no lease, our owner record       | an admin tool's edit: keep its enable and weight, put under L
    another owner of ours, that wants | the winner puts, the other is reported
      it too                         |
    another owner of ours, that does  | put: the address has moved
      not want it (any more)         |
    a foreign lease, our owner record| put: a foreign overwrite is repaired
    the same for the nth time         | nothing: somebody else claims it as we do (`Disputes`)
    anything else                    | nothing: a process registered itself; respect it and say so

An owner holds what its owner record names, and what carries L though that was deleted or damaged. A key that it holds
and no longer wants is deleted if it still carries L, unless it is to stay as it is: then it is neither put nor deleted,
and stays named in the owner record. No key stays that leads to an address which its Pod no longer has. Each edit holds
what must still be true: what is known may be old, and of keys and owner record one may be older than the other. An
owner record never stops naming a key that still carries L: nobody would ever delete that key. What one transaction
cannot hold is left for the next plan: deregistrations first, then what was put longest ago, so that each key has its
turn however often all of them change; and nothing of it is said to be written. Applying a plan and planning again, for
as long as plans say that they are a part only, gives an empty plan.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import Adjustment, OwnerRecord, owner_key
from grpc_etcd_operator.core.desired import Desired, DesiredRecord, Fault, leads_elsewhere
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.reasons import Reason

ABSENT = 0
# Within this time so often a foreign overwrite of one key by one lease is repaired. Arbitrary.
DISPUTE_SECONDS, REPAIRS, MOST_REPAIRS = 60.0, 5, 20
MOST_DISPUTES = 10_000  # that are remembered. Arbitrary
MOST_BYTES = 500_000  # of a unit's puts in one transaction, of etcd's 1.5 MiB (--max-request-bytes)
OVERHEAD_BYTES = 128  # of each put, beside key and value: etcd's own fields and the free space of its pages. Arbitrary


E = TypeVar("E")


class Held(Protocol):
    """A record as the registry holds it."""

    @property
    def value(self) -> bytes:
        """Return its value."""

    @property
    def lease(self) -> int:
        """Return its lease; 0 means none."""

    @property
    def mod_revision(self) -> int:
        """Return the revision that last put it."""


@dataclass(frozen=True, slots=True)
class PutEdit:
    """Put `key` under the unit's lease if its mod revision is still this one (0: it does not exist)."""

    key: bytes
    value: bytes
    mod_revision: int


@dataclass(frozen=True, slots=True)
class DeleteEdit:
    """Delete `key` if it still carries this lease; where a mod revision is given, only if it is still that one."""

    key: bytes
    lease: int
    mod_revision: int = ABSENT


@dataclass(frozen=True, slots=True)
class Requirement:
    """Leave `key` alone, but edit the others only if its mod revision is still this one."""

    key: bytes
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Release:
    """Leave `key` alone, but edit the others only if it does not carry this lease."""

    key: bytes
    lease: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The edits of one unit. `faults` is all that is wrong with it, `contested` the keys that others hold.

    `requires` has the owner record where keys are put and it is not: a key without one would be nobody's for good.
    `releases` are the keys that the owner record names no longer though they are not deleted.

    `written` are the GrpcServices (by UID) that have all their keys once it is applied; `is_part`: another plan has to
    follow it, for so many keys as are `left` (0: nobody has counted them). `is_over`: once it is applied nothing is
    under the unit's lease, nor awaited there.
    """

    uid: str
    lease: int
    puts: tuple[PutEdit, ...] = ()
    deletes: tuple[DeleteEdit, ...] = ()
    requires: tuple[Requirement, ...] = ()
    releases: tuple[Release, ...] = ()
    faults: tuple[Fault, ...] = ()
    contested: tuple[bytes, ...] = ()
    written: frozenset[str] = frozenset()
    gone: bool = False
    is_part: bool = False
    is_over: bool = False
    left: int = 0

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to do."""
        return not self.puts and not self.deletes

    @property
    def keys(self) -> tuple[bytes, ...]:
        """List the keys that are touched."""
        return (*(edit.key for edit in self.puts), *(edit.key for edit in self.deletes))

    @property
    def size(self) -> int:
        """Count its part of a transaction's conditions, of which there are never fewer than operations."""
        return len(self.puts) + len(self.deletes) + len(self.requires) + len(self.releases)

    @property
    def put_bytes(self) -> int:
        """Count the bytes that etcd keeps of its puts."""
        return sum(len(put.key) + len(put.value) + OVERHEAD_BYTES for put in self.puts)

    @property
    def is_new(self) -> bool:
        """Return whether it overwrites nothing."""
        return all(put.mod_revision == ABSENT for put in self.puts)

    def without_puts(self) -> "Plan":
        """Return what it deletes. The owner record then names more keys than there are, which harms nobody."""
        return replace(self, puts=(), requires=(), releases=(), written=frozenset(), is_part=True, left=0)


class Registry(Protocol):
    """What the planner asks of the mirror of a registry."""

    def record(self, key: bytes) -> Held | None:
        """Return the record of a key."""

    def owner(self, uid: str) -> OwnerRecord | None:
        """Return a unit's owner record."""

    def unnamed(self, lease: int) -> Iterable[bytes]:
        """Return the keys that carry a unit's lease and that its owner record does not name."""


# Decides between two units that both want a key: does the unit that asks win over the one behind this lease?
# None: no unit of ours is behind that lease.
Contest = Callable[[bytes, int], bool | None]


class Disputes:
    """Counts how often somebody else has overwritten a key that an owner record of ours names. `now` is monotonic.

    Where the operator of another cluster id has an owner record with the same key, each would repair what the other has
    written, forever. Both count, and the one whose lease is the larger gives way; were that a writer which does not,
    the other does so as well, later. What is given up is another's key like any other.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[bytes, int], _Dispute] = {}

    def __len__(self) -> int:
        return len(self._found)

    def is_lost(self, key: bytes, current: Held, ours: int, now: float) -> bool:
        """Take that a key of ours is found under another's lease; return whether it is to be left there."""
        self._forget(now)
        if not current.lease:
            return False
        dispute = self._found.setdefault((key, current.lease), _Dispute(now))
        dispute.overwrites += current.mod_revision != dispute.revision
        dispute.revision = current.mod_revision
        return dispute.overwrites > (REPAIRS if current.lease < ours else MOST_REPAIRS)

    def _forget(self, now: float) -> None:
        """Forget what is over; the earliest come first."""
        while self._found:
            first = next(iter(self._found))
            if len(self._found) <= MOST_DISPUTES and now - self._found[first].since <= DISPUTE_SECONDS:
                return
            del self._found[first]


@dataclass(slots=True)
class _Dispute:
    since: float
    overwrites: int = 0
    revision: int = ABSENT


def _never(_key: bytes, _current: Held, _ours: int) -> bool:
    return False


def make_plan(  # noqa: PLR0913, PLR0917  what is wanted and held, and who else wants it
    desired: Desired,
    cluster: str,
    registry: Registry,
    contest: Contest,
    most: int | None = None,
    is_lost: Callable[[bytes, Held, int], bool] = _never,
) -> Plan:
    """Work out the edits that bring a unit's records from current to desired; `most` is the largest size of a plan.

    `is_lost` says whether a key that the unit holds is to be left to the foreign lease that it is found under; it gets
    the unit's own lease, too.
    """
    planner = _Planner(desired, cluster, registry, contest, is_lost)
    for wanted in desired.wanted:
        planner.want(wanted)
    planner.deregister_the_rest()
    if most is not None:
        planner.postpone(most - 1)  # there is an owner record to be put, deleted or required as well
    planner.keep_owner_record()
    return planner.plan()


class _Planner:
    """Collects the edits of one unit; lives for one call of `make_plan`."""

    def __init__(
        self,
        desired: Desired,
        cluster: str,
        registry: Registry,
        contest: Contest,
        is_lost: Callable[[bytes, Held, int], bool],
    ) -> None:
        self.desired, self.registry, self.contest, self.is_lost = desired, registry, contest, is_lost
        self.uid = desired.unit.uid
        self.lease = lease_id(cluster, self.uid)
        self.owner_key = owner_key(cluster, self.uid)
        self.owner = registry.owner(self.uid)
        named = frozenset(self.owner.keys) if self.owner else frozenset[bytes]()
        self.unnamed = frozenset(registry.unnamed(self.lease)) - named
        self.held = named | self.unnamed
        self.adjustments = dict(self.owner.adjustments) if self.owner else {}
        self.kept_adjustments: dict[bytes, Adjustment] = {}
        self.written: dict[bytes, str] = {}
        self.references: dict[bytes, str] = {}
        self.kept: dict[bytes, tuple[str, ...]] = {}
        self.puts: list[PutEdit] = []
        self.deletes: list[DeleteEdit] = []
        self.requires: list[Requirement] = []
        self.releases: list[Release] = []
        self.faults: list[Fault] = []
        self.contested: list[bytes] = []
        self.late: set[str] = set()
        self.is_part = False
        self.left = 0

    def want(self, wanted: DesiredRecord) -> None:
        key, current = wanted.key, self.registry.record(wanted.key)
        if key in self.desired.keeps:
            return
        if wanted.only_if_held and not (current and key in self.held and current.lease in (self.lease, 0)):
            return
        if current and not self._may_write(wanted, current):
            return
        if current and current.lease == 0 and key in self.held:
            self._adopt_adjustment(wanted, current.value)
        value = self._adjusted(wanted)
        self.written[key], self.references[key] = wanted.source, wanted.reference
        if current is None or current.lease != self.lease or current.value != value:
            self.puts.append(PutEdit(key, value, current.mod_revision if current else ABSENT))

    def _may_write(self, wanted: DesiredRecord, current: Held) -> bool:
        """Decide who the key belongs to; a key that stays another's is a fault of the GrpcService."""
        if current.lease == self.lease:
            return True
        wins = self.contest(wanted.key, current.lease) if current.lease else None
        if wins or (wins is None and wanted.key in self.held and not self.is_lost(wanted.key, current, self.lease)):
            return True
        key = wanted.key.decode(errors="replace")
        self.contested.append(wanted.key)
        if wins is None:
            writer = "the server itself, another tool or the operator of another cluster id"
            message = f"{key} is registered by {writer}: stop that writer, or delete the key once"
        else:
            message = f"{key} is owned by another Pod or GrpcService, which takes precedence"
        self.faults.append(Fault(wanted.source, Reason.KEY_TAKEN, message))
        return False

    def _adopt_adjustment(self, wanted: DesiredRecord, value: bytes) -> None:
        """Keep `enable` and `weight` of a value that an admin tool put in place of ours."""
        ours = wanted.endpoint
        theirs = wanted.layout.decode(ours.name, wanted.key, value) if wanted.layout and ours else None
        if ours and isinstance(theirs, Endpoint) and (theirs.enable, theirs.weight) != (ours.enable, ours.weight):
            self.adjustments[wanted.key] = Adjustment(theirs.enable, theirs.weight, ours.enable, ours.weight)

    def _adjusted(self, wanted: DesiredRecord) -> bytes:
        """Return the value with the admin's adjustment, for as long as our own wish is what it was then."""
        adjustment, ours = self.adjustments.get(wanted.key), wanted.endpoint
        if adjustment is None or ours is None or wanted.layout is None:
            return wanted.value
        if (ours.enable, ours.weight) != (adjustment.was_enable, adjustment.was_weight):
            return wanted.value
        encoded = wanted.layout.encode(ours.name, replace(ours, enable=adjustment.enable, weight=adjustment.weight))
        if not isinstance(encoded, KeyValue):
            return wanted.value
        self.kept_adjustments[wanted.key] = adjustment
        return encoded.value

    def deregister_the_rest(self) -> None:
        for key in sorted(self.held - self.written.keys()):
            current = self.registry.record(key)
            if key in self.desired.keeps:
                self._keep(key, self._behind(key))
            elif current and current.lease in (self.lease, 0) and (behind := self._keeping(key, current.value)):
                self._keep(key, behind)
            elif current and current.lease in (self.lease, 0):
                self.deletes.append(DeleteEdit(key, current.lease))
            else:
                self.releases.append(Release(key, self.lease))

    def _behind(self, key: bytes) -> tuple[str, ...]:
        if key in self.unnamed:  # then it may be of any for which something stays
            return tuple(sorted(self.desired.keep_references))
        return self.owner.behind(key) if self.owner else ()

    def _keeping(self, key: bytes, value: bytes) -> tuple[str, ...]:
        """Return the GrpcServices for which a key stays that is not wanted; none: it goes."""
        if leads_elsewhere(self.desired.host, key, value):
            return ()
        return tuple(each for each in self._behind(key) if each in self.desired.keep_references)

    def _keep(self, key: bytes, behind: tuple[str, ...]) -> None:
        self.kept[key] = behind
        if adjustment := self.adjustments.get(key):
            self.kept_adjustments[key] = adjustment

    def postpone(self, most: int) -> None:
        """Leave out what goes beyond a transaction; the owner record goes on naming what exists of it."""
        self.deletes, late_deletes = _divide(self.deletes, most)
        puts = sorted(self.puts, key=lambda put: put.mod_revision)
        self.puts, late_puts = _divide(puts, min(most - len(self.deletes), _count_fitting(puts)))
        self.releases, late_releases = _divide(self.releases, most - len(self.deletes) - len(self.puts))
        for put in late_puts:
            self.late.add(self.written.pop(put.key))
            del self.references[put.key]
        late = [*map(_key, late_deletes), *map(_key, late_puts), *map(_key, late_releases)]
        for key in self.held.intersection(late):
            self._keep(key, self._behind(key))
        self.is_part, self.left = bool(late), len(late)

    def keep_owner_record(self) -> None:
        current = self.registry.record(self.owner_key)
        if not self.written and not self.kept:
            if current:
                self.deletes.append(DeleteEdit(self.owner_key, current.lease, current.mod_revision))
            return
        unit = self.desired.unit
        kept = (each for behind in self.kept.values() for each in behind)
        references = tuple(dict.fromkeys((*self.desired.references, *kept)))
        value = OwnerRecord(
            namespace=unit.namespace,
            pod=unit.pod,
            node=unit.node,
            grpc_services=references,
            keys=(*self.written, *self.kept),
            sources=self._sources() if len(references) > 1 else {},
            adjustments=self.kept_adjustments,
        ).to_json()
        if current is None or current.lease != self.lease or current.value != value:
            self.puts.append(PutEdit(self.owner_key, value, current.mod_revision if current else ABSENT))
        elif self.puts:
            self.requires.append(Requirement(self.owner_key, current.mod_revision))

    def _sources(self) -> dict[str, tuple[bytes, ...]]:
        """Return which key is of which GrpcService."""
        found: dict[str, list[bytes]] = {}
        for key, references in (*((key, (of,)) for key, of in self.references.items()), *self.kept.items()):
            for reference in references:
                found.setdefault(reference, []).append(key)
        return {reference: tuple(keys) for reference, keys in found.items() if reference}

    def plan(self) -> Plan:
        return Plan(
            self.uid,
            self.lease,
            tuple(self.puts),
            tuple(self.deletes),
            tuple(self.requires),
            tuple(self.releases),
            (*self.faults, *self.desired.faults),
            tuple(self.contested),
            frozenset(self.written.values()) - self.late - {fault.source for fault in self.faults},
            self.desired.gone and not self.is_part,
            self.is_part,
            not (self.is_part or self.written or self.kept or self.desired.is_awaited),
            self.left,
        )


def _key(edit: PutEdit | DeleteEdit | Release) -> bytes:
    return edit.key


def _divide(edits: list[E], most: int) -> tuple[list[E], list[E]]:
    most = max(0, most)
    return edits[:most], edits[most:]


def _count_fitting(puts: Iterable[PutEdit]) -> int:
    """Count the puts that a transaction takes by their size, the first of them however large it is."""
    sizes = itertools.accumulate(3 * len(put.key) + len(put.value) for put in puts)
    return max(1, sum(size <= MOST_BYTES for size in sizes))
