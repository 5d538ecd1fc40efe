"""Watch events, listings and answers come in any order: the mirror ends true, and nobody misses what concerns him."""

from dataclasses import dataclass, field
from typing import TypeAlias

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from grpc_etcd.etcd.model import Deleted, Event, LeaseId, Put, Record, Revision
from grpc_etcd.registry.own import OwnerRecord, owner_key
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.writer.mirror import Announcement, Mirror

CLUSTER, UNIT, WAITER = "c1", "p1", "p2"
LEASE, STRANGER = LeaseId(lease_id(CLUSTER, UNIT)), LeaseId(77)
PREFIX, OWNER = b"/jupiter/greeter/providers/", owner_key(CLUSTER, UNIT)
KEYS = (PREFIX + b"a",)
keys = st.sampled_from(KEYS)
State: TypeAlias = tuple[bytes, LeaseId] | None


def state(records: dict[bytes, Record], key: bytes) -> State:
    record = records.get(key)
    return (record.value, record.lease) if record else None


@dataclass
class Transaction:
    """One put (or delete, without a value) of ours; `answer` is what etcd has said, once it has."""

    key: bytes
    value: bytes | None
    mod_revision: int
    answer: tuple[bool, Record | None, int] | None = None
    announcement: Announcement = field(init=False)

    def __post_init__(self) -> None:
        leases, deletes = ([], [self.key]) if self.value is None else ([LEASE], [])
        self.announcement = Announcement(leases, [self.key], deletes)


class AnyOrder(RuleBasedStateMachine):
    """etcd's log against a mirror that is told of it late, by a watch, by listings and by answers."""

    def __init__(self) -> None:
        super().__init__()
        self.mirror = Mirror(CLUSTER)
        self.store: dict[bytes, Record] = {}
        self.revision = 1
        self.unseen: list[Event] = []
        self.under_way: Transaction | None = None
        self.waiting: set[bytes] = set()
        self.known: dict[bytes, State] = {}  # what each key is to the holder, who was told or did it himself
        self.told_meanwhile = False

    @initialize()
    def the_unit_holds_both_keys(self) -> None:
        owner = OwnerRecord(namespace="shop", pod="pod-1", node="", grpc_services=(), keys=KEYS)
        for key, value in ((OWNER, owner.to_json()), *((key, b"0") for key in KEYS)):
            self._put(key, value, LEASE)
        self._list()

    def _put(self, key: bytes, value: bytes, lease: LeaseId) -> None:
        self.revision += 1
        now = Revision(self.revision)
        self.store[key] = Record(key, value, lease, now, now, 1)
        self.unseen.append(Put(self.store[key]))

    def _delete(self, key: bytes) -> None:
        if self.store.pop(key, None):
            self.revision += 1
            self.unseen.append(Deleted(key, Revision(self.revision)))

    def _list(self) -> None:
        self.unseen.clear()
        before = dict(self.mirror.records)
        prefixes = (PREFIX, OWNER)
        self._told(self.mirror.replace(prefixes, self.store.values(), self.revision), before)

    def _told(self, concerned: set[str], before: dict[bytes, Record]) -> None:
        """Check that whoever waits for a key was told of its change."""
        for key in self.waiting:
            if before.get(key) != self.mirror.record(key):
                assert WAITER in concerned
        if WAITER in concerned:
            self.waiting.clear()
        if UNIT in concerned:
            self.known = {key: state(self.mirror.records, key) for key in KEYS}
            self.told_meanwhile = True

    @rule(key=keys, value=st.sampled_from([b"x", b"y", None]))
    def a_stranger_writes(self, key: bytes, value: bytes | None) -> None:
        self._delete(key) if value is None else self._put(key, value, STRANGER)

    @rule(key=keys)
    def somebody_waits(self, key: bytes) -> None:
        self.mirror.contest(WAITER, [key])
        self.waiting.add(key)

    @precondition(lambda self: self.under_way is None)
    @rule(key=keys, value=st.sampled_from([b"1", b"2", None]))
    def we_send(self, key: bytes, value: bytes | None) -> None:
        held = self.mirror.record(key)
        if held or value is not None:
            self.under_way = Transaction(key, value, held.mod_revision if held else 0)
            self.told_meanwhile = False
            self.mirror.expect(self.under_way.announcement)

    @precondition(lambda self: self.under_way and not self.under_way.answer)
    @rule()
    def etcd_decides(self) -> None:
        assert self.under_way
        mine, held = self.under_way, self.store.get(self.under_way.key)
        if (held.mod_revision if held else 0) != mine.mod_revision:
            mine.answer = (False, held, self.revision)
            return
        self._delete(mine.key) if mine.value is None else self._put(mine.key, mine.value, LEASE)
        mine.answer = (True, None, self.revision)

    @precondition(lambda self: self.under_way and self.under_way.answer)
    @rule()
    def the_answer_comes(self) -> None:
        assert self.under_way
        assert self.under_way.answer
        (succeeded, record, revision), mine = self.under_way.answer, self.under_way
        before, self.under_way = dict(self.mirror.records), None
        if not succeeded:
            concerned = self.mirror.note_seen(mine.key, record, revision) | {UNIT}
        elif mine.value is None:
            concerned = self.mirror.note_deleted(mine.key, revision)
        else:
            now = Revision(revision)
            concerned = self.mirror.note_put(UNIT, Record(mine.key, mine.value, LEASE, now, now, 1))
        if succeeded:
            self.known[mine.key] = (mine.value, LEASE) if mine.value is not None else None
        # Who was told while his transaction was under way looks again after it.
        self._told(concerned | ({UNIT} if self.told_meanwhile else set()), before)
        self.mirror.expect_no_more(mine.announcement)

    @precondition(lambda self: self.unseen)
    @rule(count=st.integers(1, 4))
    def the_watch_delivers(self, count: int) -> None:
        some, self.unseen = self.unseen[:count], self.unseen[count:]
        before = dict(self.mirror.records)
        self._told(self.mirror.apply(some), before)

    @rule()
    def the_watch_begins_anew(self) -> None:
        self._list()

    @invariant()
    def all_is_known_once_all_is_told(self) -> None:
        if not self.unseen and self.under_way is None:
            assert self.mirror.records == self.store
            assert self.known == {key: state(self.store, key) for key in KEYS}


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=500, stateful_step_count=40, deadline=None)


def test_who_waits_is_told_when_it_becomes_known_whose_the_key_is() -> None:
    mirror, now = Mirror(CLUSTER), Revision(5)
    mirror.replace((PREFIX, OWNER), [Record(KEYS[0], b"0", LEASE, now, now, 1)], 5)
    mirror.contest(WAITER, KEYS)
    owner = OwnerRecord(namespace="shop", pod="pod-1", node="", grpc_services=(), keys=KEYS)
    assert mirror.apply([Put(Record(OWNER, owner.to_json(), LEASE, now, now, 1))]) == {UNIT, WAITER}
