"""What one registry holds of what concerns us: the records under our services' prefixes and all owner records.

Fed by a list+watch and by what our own transactions wrote, whichever comes first; each key's revision decides what is
news. Each call returns the units (by UID) for which something changed behind their back. No I/O.
"""

from collections.abc import Iterable, Sequence

from grpc_etcd.etcd.model import Deleted, Event, LeaseId, Record, Revision
from grpc_etcd.registry.own import OwnerRecord, owner_prefix
from grpc_etcd_operator.core.leases import lease_id


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
        self._expected_leases: set[int] = set()
        self._expected_deletes: set[bytes] = set()

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

    def expect(self, leases: Iterable[int], deletes: Iterable[bytes]) -> None:
        """Announce a transaction of ours, so that its events are not taken for somebody else's."""
        self._expected_leases.update(leases)
        self._expected_deletes.update(deletes)

    def expect_no_more(self, leases: Iterable[int], deletes: Iterable[bytes]) -> None:
        """Take back an announcement: the transaction's outcome is known."""
        self._expected_leases.difference_update(leases)
        self._expected_deletes.difference_update(deletes)

    def replace(self, prefixes: Sequence[bytes], records: Iterable[Record], revision: int) -> set[str]:
        """Take a complete listing of some prefixes at a revision."""
        listed = {record.key: record for record in records}
        missing = [
            key
            for key, held in self.records.items()
            if key not in listed and held.mod_revision <= revision and key.startswith(tuple(prefixes))
        ]
        changed = set()
        for key in missing:
            changed |= self._remove(key)
        for record in listed.values():
            if self._is_news(record.key, record.mod_revision):
                changed |= self._store(record)
        return changed

    def apply(self, events: Iterable[Event]) -> set[str]:
        """Take watch events; echoes of our own transactions change nothing."""
        changed: set[str] = set()
        for event in events:
            if isinstance(event, Deleted):
                changed |= self._apply_delete(event)
            elif self._is_news(event.key, event.revision):
                ours = event.record.lease in self._expected_leases
                touched = self._store(event.record)
                changed |= set() if ours else touched
        return changed

    def note_put(self, key: bytes, value: bytes, lease: int, revision: int) -> None:
        """Take what a transaction of ours has put."""
        if self._is_news(key, revision):
            number = Revision(revision)
            self._store(Record(key, value, LeaseId(lease), number, number, 1))

    def note_deleted(self, key: bytes, revision: int) -> set[str]:
        """Take that a transaction of ours has deleted a key; the units that waited for it are returned."""
        held = self.records.get(key)
        if held is None or held.mod_revision > revision:
            return set()
        self._buried[key] = revision
        return self._remove(key)

    def note_seen(self, key: bytes, record: Record | None, revision: int) -> None:
        """Take what a read at a revision has found under a key."""
        if record is not None:
            if self._is_news(key, record.mod_revision):
                self._store(record)
        elif (held := self.records.get(key)) is not None and held.mod_revision <= revision:
            self._remove(key)

    def _apply_delete(self, event: Deleted) -> set[str]:
        if self._buried.get(event.key, -1) <= event.revision:
            self._buried.pop(event.key, None)
        held = self.records.get(event.key)
        if held is None or held.mod_revision >= event.revision:
            return set()
        ours = event.key in self._expected_deletes
        touched = self._remove(event.key)
        return set() if ours else touched

    def _is_news(self, key: bytes, revision: int) -> bool:
        held = self.records.get(key)
        return revision > (held.mod_revision if held else self._buried.get(key, -1))

    def _store(self, record: Record) -> set[str]:
        self.records[record.key] = record
        if record.key.startswith(self._owner_prefix):
            return self._store_owner(record)
        return self._concerned(record.key)

    def _remove(self, key: bytes) -> set[str]:
        self.records.pop(key, None)
        concerned = self._concerned(key)
        if key.startswith(self._owner_prefix):
            uid = self._uid_of(key)
            self._drop_owner(uid)
            concerned = {uid}
        return concerned

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

    def _concerned(self, key: bytes) -> set[str]:
        """Find who holds a key or waits for it."""
        waiting = self._contested.pop(key, None) or set()
        holder = self._holder.get(key)
        return waiting | {holder} if holder else waiting

    def _uid_of(self, key: bytes) -> str:
        return key[len(self._owner_prefix) :].decode(errors="replace")
