"""What one registry holds of what concerns us: the records under our services' prefixes and all owner records.

Fed by a list+watch and by what our own transactions wrote, whichever comes first; each key's revision decides what is
news. Each call returns the units (by UID) to look at again: the holder of a key that somebody else changed, and whoever
waits for a key, no matter who changed it. No I/O.
"""

from collections.abc import Iterable, Sequence

from grpc_etcd.etcd.model import Deleted, Event, Record
from grpc_etcd.registry.own import OwnerRecord, owner_prefix
from grpc_etcd_operator.core.leases import lease_id


class Announcement:
    """A transaction of ours under way: its events are not somebody else's doing, its answer may come late.

    `away` says for each of its keys at which revision it was seen to be away meanwhile: an answer that the watch has
    overtaken must not bring the key back.
    """

    def __init__(self, leases: Iterable[int], keys: Iterable[bytes], deletes: Iterable[bytes]) -> None:
        """Take the leases that it puts under, all keys that it touches or reads, and those that it deletes."""
        self.leases, self.deletes = frozenset(leases), frozenset(deletes)
        self.away = dict.fromkeys(keys, -1)


class Mirror:
    """The registry as last seen. Implements what the planner asks for (`core.plan.Registry`)."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._owner_prefix = owner_prefix(cluster)
        self.records: dict[bytes, Record] = {}
        self.owners: dict[str, OwnerRecord] = {}
        self._unit_of_lease: dict[int, str] = {}
        self._holder: dict[bytes, str] = {}
        self._buried: dict[bytes, int] = {}
        self._contested: dict[bytes, set[str]] = {}
        self._under_way: list[Announcement] = []

    def __repr__(self) -> str:
        return f"<Mirror records={len(self.records)} owners={len(self.owners)}>"

    def record(self, key: bytes) -> Record | None:
        """Give the record of a key."""
        return self.records.get(key)

    def owner(self, uid: str) -> OwnerRecord | None:
        """Give a unit's owner record."""
        return self.owners.get(uid)

    def unit_of_lease(self, lease: int) -> str | None:
        """Give the unit whose lease this is, if it has an owner record."""
        return self._unit_of_lease.get(lease)

    def contest(self, uid: str, keys: Iterable[bytes]) -> None:
        """Remember that a unit waits for keys that somebody else holds."""
        for key in keys:
            self._contested.setdefault(key, set()).add(uid)

    def expect(self, announcement: Announcement) -> None:
        """Take it that a transaction of ours is under way."""
        self._under_way.append(announcement)

    def expect_no_more(self, announcement: Announcement) -> None:
        """Take it that a transaction's outcome is known."""
        self._under_way.remove(announcement)

    def replace(self, prefixes: Sequence[bytes], records: Iterable[Record], revision: int) -> set[str]:
        """Take a complete listing of some prefixes at a revision."""
        listed = {record.key: record for record in records}
        under = tuple(prefixes)
        missing = [
            key
            for key, held in self.records.items()
            if key not in listed and held.mod_revision <= revision and key.startswith(under)
        ]
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

    def apply(self, events: Iterable[Event]) -> set[str]:
        """Take watch events; echoes of our own transactions concern nobody but those who wait."""
        changed: set[str] = set()
        for event in events:
            if isinstance(event, Deleted):
                changed |= self._apply_delete(event)
            elif self._is_news(event.key, event.revision):
                ours = any(event.record.lease in each.leases for each in self._under_way)
                changed |= self._concerned(event.key, self._store(event.record), ours=ours)
        return changed

    def note_put(self, uid: str, record: Record) -> set[str]:
        """Take what a transaction of ours has put for a unit, which must look again if that is gone already."""
        if self._is_news(record.key, record.mod_revision):
            return self._concerned(record.key, self._store(record), ours=True)
        return set() if record.key in self.records else {uid}

    def note_deleted(self, key: bytes, revision: int) -> set[str]:
        """Take that a transaction of ours has deleted a key."""
        held = self.records.get(key)
        if held is None or held.mod_revision > revision:
            return set()
        self._buried[key] = revision
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

    def _stop_waiting(self, key: bytes) -> set[str]:
        """Give who waits for a key; an owner record says whose keys those are that it names, so it counts for them."""
        owner = self.owners.get(self._uid_of(key)) if key.startswith(self._owner_prefix) else None
        keys = owner.keys if owner else (key,)
        return {uid for each in keys for uid in self._contested.pop(each, ())}

    def _store(self, record: Record) -> set[str]:
        """Store a record; return its holder."""
        self.records[record.key] = record
        if record.key.startswith(self._owner_prefix):
            return self._store_owner(record)
        return self._holder_of(record.key)

    def _remove(self, key: bytes) -> set[str]:
        """Remove a record; return who held it."""
        self.records.pop(key, None)
        if key.startswith(self._owner_prefix):
            uid = self._uid_of(key)
            self._drop_owner(uid)
            return {uid}
        return self._holder_of(key)

    def _store_owner(self, record: Record) -> set[str]:
        uid = self._uid_of(record.key)
        parsed = OwnerRecord.from_json(record.value)
        self._drop_owner(uid)
        if isinstance(parsed, OwnerRecord):
            self.owners[uid] = parsed
            self._unit_of_lease[lease_id(self._cluster, uid)] = uid
            for key in parsed.keys:
                self._holder[key] = uid
        return {uid}

    def _drop_owner(self, uid: str) -> None:
        owner = self.owners.pop(uid, None)
        if owner is None:
            return
        self._unit_of_lease.pop(lease_id(self._cluster, uid), None)
        for key in owner.keys:
            if self._holder.get(key) == uid:
                del self._holder[key]

    def _holder_of(self, key: bytes) -> set[str]:
        holder = self._holder.get(key)
        return {holder} if holder else set()

    def _uid_of(self, key: bytes) -> str:
        return key[len(self._owner_prefix) :].decode(errors="replace")
