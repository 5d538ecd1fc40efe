"""What one registry holds of what concerns us: the records under our services' prefixes and all owner records.

Fed by a list+watch and by what our own transactions wrote, whichever comes first; each key's revision decides what is
news. Each call returns the units (by UID) to look at again: the holder of a key that somebody else changed, and whoever
waits for a key, no matter who changed it. No I/O.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from grpc_etcd.etcd.model import Deleted, Event, Record
from grpc_etcd.registry.own import OwnerRecord, owner_prefix
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.registry.keys import KeyTree


class Announcement:
    """A transaction of ours under way: its events are not somebody else's doing, its answer may come late.

    `away` says for each of its keys at which revision it was seen to be away meanwhile: an answer that the watch has
    overtaken must not bring the key back.
    """

    def __init__(
        self, puts: Mapping[bytes, tuple[int, bytes]], keys: Iterable[bytes], deletes: Iterable[bytes]
    ) -> None:
        """Take what it puts (lease and value by key), all keys that it touches or reads, and those that it deletes."""
        self._puts, self.deletes = puts, frozenset(deletes)
        self.away = dict.fromkeys(keys, -1)

    def has_put(self, record: Record) -> bool:
        """Return whether a record is what it puts: an admin may write under a lease of ours as well."""
        return self._puts.get(record.key) == (record.lease, record.value)


class RegistryCache:
    """The registry as last seen. Implements what the planner asks for (`core.plan.Registry`)."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._owner_prefix = owner_prefix(cluster)
        self.records: dict[bytes, Record] = {}
        self._keys = KeyTree()
        self.owners: dict[str, OwnerRecord] = {}
        self._unit_of_lease: dict[int, str] = {}
        # Several owner records may name a key for a while, whose transactions are of different times: each is reported.
        self._holders: dict[bytes, tuple[str, ...]] = {}
        self._unnamed: dict[int, set[bytes]] = {}  # keys by lease, of which no owner record says that they are there
        self._bereft: dict[int, str] = {}  # the units of such leases, where an owner record has named the keys before
        self._buried: dict[bytes, int] = {}
        self._contested: dict[bytes, set[str]] = {}
        self._contests: dict[str, frozenset[bytes]] = {}  # the same by unit
        self._under_way: list[Announcement] = []
        self._displaced: set[str] = (
            set()
        )  # by events that came before their answer; reported with it, once all is known
        self.newest = 0  # the highest revision of which anything is known
        self._named_by: dict[str, dict[str, None]] = {}  # owners by the GrpcServices (`namespace/name`) that they name
        self.owners_version = 0  # grows with each change of `owners`; a revision does not: its news come in parts
        self._in_namespace: dict[str, dict[str, None]] = {}
        self._version_in: dict[str, int] = {}  # the same by namespace

    def __repr__(self) -> str:
        return f"<RegistryCache records={len(self.records)} owners={len(self.owners)}>"

    def record(self, key: bytes) -> Record | None:
        """Return the record of a key."""
        return self.records.get(key)

    def owner(self, uid: str) -> OwnerRecord | None:
        """Return a unit's owner record."""
        return self.owners.get(uid)

    def unit_of_lease(self, lease: int) -> str | None:
        """Return the unit whose lease this is, if it has an owner record."""
        return self._unit_of_lease.get(lease)

    def owners_of(self, reference: str) -> Collection[str]:
        """Return the owners (by UID) that have records of a GrpcService (`namespace/name`)."""
        return self._named_by.get(reference, {}).keys()

    def owners_in(self, namespace: str) -> Iterable[OwnerRecord]:
        """Return the owner records of a namespace."""
        return (self.owners[uid] for uid in self._in_namespace.get(namespace, ()))

    def version_in(self, namespace: str) -> int:
        """Return what is another number after each change of the owner records of a namespace; 0: it has none."""
        return self._version_in.get(namespace, 0)

    def unnamed(self, lease: int) -> Collection[bytes]:
        """Return the keys that carry a lease and that the owner record of its unit does not name, or that has none."""
        return self._unnamed.get(lease, ())

    def is_unnamed(self, key: bytes) -> bool:
        """Return whether a key is one of those that `unnamed` gives, be it named by another unit or not."""
        held = self.records.get(key)
        return held is not None and key in self.unnamed(held.lease)

    @property
    def bereft(self) -> list[bytes]:
        """Return the keys that are under the lease of an owner whose owner record has named them, and is gone."""
        return [key for lease in self._bereft for key in self._unnamed.get(lease, ())]

    @property
    def has_unnamed(self) -> bool:
        """Return whether there are keys that no owner record names, be they ours or not."""
        return bool(self._unnamed)

    def is_writing_below(self, prefix: bytes) -> bool:
        """Return whether a transaction of ours that touches a key below a prefix is under way."""
        return any(key.startswith(prefix) for each in self._under_way for key in each.away)

    def contest(self, uid: str, keys: Iterable[bytes]) -> None:
        """Remember which keys that somebody else holds a unit waits for: these, and no more the earlier ones."""
        new = frozenset(keys)
        if not new and uid not in self._contests:
            return
        for key in self._contests.pop(uid, frozenset()) - new:
            self._wait_no_more(uid, key)
        for key in new:
            self._contested.setdefault(key, set()).add(uid)
        if new:
            self._contests[uid] = new

    def _wait_no_more(self, uid: str, key: bytes) -> None:
        waiting = self._contested.get(key, set())
        waiting.discard(uid)
        if not waiting:
            self._contested.pop(key, None)

    def expect(self, announcement: Announcement) -> None:
        """Record that a transaction of ours is under way."""
        self._under_way.append(announcement)

    def expect_no_more(self, announcement: Announcement) -> set[str]:
        """Record that a transaction's outcome is known, or never will be; return whom its events have displaced."""
        self._under_way.remove(announcement)
        if self._under_way:
            return set()
        displaced, self._displaced = self._displaced, set()
        return displaced

    def forget(self, prefixes: Sequence[bytes]) -> set[str]:
        """Forget all that is known under some prefixes, revisions included; return who held anything there.

        Either etcd holds another history now, or nobody follows them any more.
        """
        under = tuple(prefixes)
        if b"" in under:
            self.newest = 0
        changed: set[str] = set()
        for key in self._under(prefixes):
            changed |= self._concerned(key, self._remove(key))
        self._dig_up(under)
        for each in self._under_way:
            each.away.update(dict.fromkeys((key for key in each.away if key.startswith(under)), -1))
        return changed

    def correct(self, key: bytes, record: Record | None) -> set[str]:
        """Take what a key holds, whatever was known of it: news of it have been missed."""
        self._buried.pop(key, None)
        if record is not None:
            return self._concerned(key, self._store(record))
        return self._concerned(key, self._remove(key))

    def replace(self, prefixes: Sequence[bytes], records: Iterable[Record], revision: int) -> set[str]:
        """Take a complete listing of some prefixes at a revision."""
        listed = {record.key: record for record in records}
        under = tuple(prefixes)
        missing = [
            key for key in self._under(prefixes) if key not in listed and self.records[key].mod_revision <= revision
        ]
        self._dig_up(under, revision)  # events that are older than a listing come no more
        changed: set[str] = set()
        for key in missing:
            changed |= self._concerned(key, self._remove(key))
        for record in listed.values():
            if self._is_news(record.key, record.mod_revision):
                changed |= self._concerned(record.key, self._store(record))
        for key in {key for each in self._under_way for key in each.away}:
            if key not in listed and key.startswith(under):
                self._note_away(key, revision)
        return changed

    def _under(self, prefixes: Iterable[bytes]) -> set[bytes]:
        return {key for prefix in prefixes for key in self._keys.under(prefix)}

    def _dig_up(self, under: tuple[bytes, ...], revision: float = math.inf) -> None:
        """Forget which keys under some prefixes were deleted up to a revision."""
        for key in [key for key, at in self._buried.items() if at <= revision and key.startswith(under)]:
            del self._buried[key]

    def apply(self, events: Iterable[Event]) -> set[str]:
        """Take watch events; echoes of our own transactions concern nobody but those who wait."""
        changed: set[str] = set()
        for event in events:
            if isinstance(event, Deleted):
                changed |= self._apply_delete(event)
            elif self._is_news(event.key, event.revision):
                ours = any(each.has_put(event.record) for each in self._under_way)
                self._displaced |= self._dispossessed(event.record) if ours else set()
                changed |= self._concerned(event.key, self._store(event.record), ours=ours)
        return changed

    def note_put(self, uid: str, record: Record) -> set[str]:
        """Take what a transaction of ours has put for an owner, which must look again if that no longer stands.

        Nor does an owner record stand alone: a key that it names may have gone before anybody knew whose it was.
        """
        displaced, self._displaced = self._displaced, set()
        if self._is_news(record.key, record.mod_revision):
            displaced |= self._dispossessed(record)
            displaced |= self._concerned(record.key, self._store(record), ours=True)
        held = self.records.get(record.key)
        stands = held is not None and (held.lease, held.value) == (record.lease, record.value)
        return displaced if stands and self._has_all_keys(record) else displaced | {uid}

    def _has_all_keys(self, record: Record) -> bool:
        """Return whether all keys that an owner record names are under its lease.

        Of any other record there are none.
        """
        owner = self.owners.get(self._uid_of(record.key)) if record.key.startswith(self._owner_prefix) else None
        return owner is None or all(self._is_under(key, record.lease) for key in owner.keys)

    def _is_under(self, key: bytes, lease: int) -> bool:
        held = self.records.get(key)
        return held is not None and held.lease == lease

    def note_deleted(self, key: bytes, revision: int, *, is_followed: bool = True) -> set[str]:
        """Take that a transaction of ours has deleted a key; of one that is not followed no watch will report."""
        held = self.records.get(key)
        if held is None or held.mod_revision > revision:
            return set()
        if is_followed:
            self._buried[key] = revision
        self.newest = max(self.newest, revision)
        return self._concerned(key, self._remove(key), ours=True)

    def note_seen(self, key: bytes, record: Record | None, revision: int) -> set[str]:
        """Take what a read at a revision has found under a key."""
        if record is not None:
            return self._concerned(key, self._store(record)) if self._is_news(key, record.mod_revision) else set()
        held = self.records.get(key)
        if held is None or held.mod_revision > revision:
            return set()
        return self._concerned(key, self._remove(key))

    def _apply_delete(self, event: Deleted) -> set[str]:
        if self._buried.get(event.key, -1) <= event.revision:
            self._buried.pop(event.key, None)
        self._note_away(event.key, event.revision)
        held = self.records.get(event.key)
        if held is None or held.mod_revision >= event.revision:
            return set()
        ours = any(event.key in each.deletes for each in self._under_way)
        return self._concerned(event.key, self._remove(event.key), ours=ours)

    def _note_away(self, key: bytes, revision: int) -> None:
        for each in self._under_way:
            if key in each.away:
                each.away[key] = max(each.away[key], revision)

    def _is_news(self, key: bytes, revision: int) -> bool:
        if held := self.records.get(key):
            return revision > held.mod_revision
        away = (each.away.get(key, -1) for each in self._under_way)
        return revision > max(away, default=-1) and revision > self._buried.get(key, -1)

    def _concerned(self, key: bytes, holders: set[str], *, ours: bool = False) -> set[str]:
        """Find whom a change of a key concerns; what we did ourselves is no news to the holder, but to who waits."""
        waiting = self._stop_waiting(key) if self._contested else set()
        return waiting if ours else waiting | holders

    def _dispossessed(self, record: Record) -> set[str]:
        """Return the units from which another of ours has just taken a key: they have to wait for it from now on.

        An owner record may come later than the key, so it is asked as well under whose lease the key has stood.
        """
        held = self.records.get(record.key)
        before = self.unit_of_lease(held.lease) if held and held.lease != record.lease else None
        holders = self._holders_of(record.key) | ({before} if before else set())
        return {uid for uid in holders if lease_id(self._cluster, uid) != record.lease}

    def _stop_waiting(self, key: bytes) -> set[str]:
        """Return who waits for a key.

        An owner record says whose keys those are that it names, so it counts for them.
        """
        owner = self.owners.get(self._uid_of(key)) if key.startswith(self._owner_prefix) else None
        keys = owner.keys if owner else (key,)
        waiting = {uid for each in keys for uid in self._contested.pop(each, ())}
        for uid in waiting:
            if left := self._contests.pop(uid, frozenset()).difference(keys):
                self._contests[uid] = left
        return waiting

    def _store(self, record: Record) -> set[str]:
        """Store a record; return its holders."""
        before, holders = self.records.get(record.key), self._holders_of(record.key)
        if before is None:
            self._keys.add(record.key)
        self.records[record.key] = record
        self.newest = max(self.newest, record.mod_revision)
        if record.key.startswith(self._owner_prefix):
            return self._store_owner(record)
        if before is None or before.lease != record.lease:
            self._note_unnamed(record, before)
        return holders

    def _note_unnamed(self, record: Record, before: Record | None) -> None:
        if before:
            self._strike(before.lease, record.key)
        if record.lease and self._unit_of_lease.get(record.lease) not in self._holders.get(record.key, ()):
            self._unnamed.setdefault(record.lease, set()).add(record.key)

    def _strike(self, lease: int, key: bytes) -> None:
        """Record that a key is not, or no longer, one that carries a lease and is named nowhere."""
        if unnamed := self._unnamed.get(lease):
            unnamed.discard(key)
            if not unnamed:
                del self._unnamed[lease]
                self._bereft.pop(lease, None)

    def _remove(self, key: bytes) -> set[str]:
        """Remove a record; return who held it."""
        holders = self._holders_of(key)
        if held := self.records.pop(key, None):
            self._keys.discard(key)
            self._strike(held.lease, key)
        if key.startswith(self._owner_prefix):
            uid = self._uid_of(key)
            self._drop_owner(uid)
            return {uid}
        return holders

    def _store_owner(self, record: Record) -> set[str]:
        uid = self._uid_of(record.key)
        parsed = OwnerRecord.from_json(record.value)
        self._drop_owner(uid)
        if isinstance(parsed, OwnerRecord):
            self.owners[uid] = parsed
            self._in_namespace.setdefault(parsed.namespace, {})[uid] = None
            self._note_version(parsed.namespace)
            lease = lease_id(self._cluster, uid)
            self._unit_of_lease[lease] = uid
            for reference in parsed.grpc_services:
                self._named_by.setdefault(reference, {})[uid] = None
            for key in parsed.keys:
                self._holders[key] = (*self._holders.get(key, ()), uid)
                self._strike(lease, key)
        return {uid}

    def _note_version(self, namespace: str) -> None:
        self.owners_version += 1
        self._version_in[namespace] = self.owners_version
        if not self._in_namespace[namespace]:
            del self._in_namespace[namespace], self._version_in[namespace]

    def _end_naming(self, reference: str, uid: str) -> None:
        if (named := self._named_by.get(reference)) is not None:
            named.pop(uid, None)
            if not named:
                del self._named_by[reference]

    def _drop_owner(self, uid: str) -> None:
        owner = self.owners.pop(uid, None)
        if owner is None:
            return
        del self._in_namespace[owner.namespace][uid]
        self._note_version(owner.namespace)
        lease = lease_id(self._cluster, uid)
        self._unit_of_lease.pop(lease, None)
        for reference in owner.grpc_services:
            self._end_naming(reference, uid)
        for key in owner.keys:
            self._end_holding(key, uid)
            # What goes with an owner record comes in a message of its own, and concerns whoever has planned meanwhile.
            if self._is_under(key, lease):
                self._unnamed.setdefault(lease, set()).add(key)
                self._bereft[lease] = uid

    def _end_holding(self, key: bytes, uid: str) -> None:
        if left := tuple(each for each in self._holders.pop(key, ()) if each != uid):
            self._holders[key] = left

    def _holders_of(self, key: bytes) -> set[str]:
        """Return the units whose owner record names a key, or named it last under the lease that it still carries."""
        holders, held = set(self._holders.get(key, ())), self.records.get(key)
        if held and held.lease in self._bereft and key in self._unnamed[held.lease]:
            holders.add(self._bereft[held.lease])
        return holders

    def _uid_of(self, key: bytes) -> str:
        return key[len(self._owner_prefix) :].decode(errors="replace")
