"""Watch events, listings and answers come in any order: the mirror ends true, and nobody misses what concerns him."""

from dataclasses import dataclass, field
from typing import TypeAlias

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from grpc_etcd.etcd.model import Deleted, Event, LeaseId, Put, Record, Revision
from grpc_etcd.registry.own import OwnerRecord, owner_key
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.registry.cache import Announcement, Mirror
from testbed.examples import examples

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
        puts, deletes = ({}, [self.key]) if self.value is None else ({self.key: (LEASE, self.value)}, [])
        self.announcement = Announcement(puts, [self.key], deletes)


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

    @rule(key=keys, value=st.sampled_from([b"x", b"y", None]), lease=st.sampled_from([STRANGER, LEASE]))
    def a_stranger_writes(self, key: bytes, value: bytes | None, lease: LeaseId) -> None:
        self._delete(key) if value is None else self._put(key, value, lease)

    @rule(key=keys)
    def somebody_waits(self, key: bytes) -> None:
        self.mirror.contest(WAITER, [key])
        self.waiting.add(key)

    @rule(key=keys, value=st.sampled_from([b"1", b"2", None]))
    def ours_goes_on(self, key: bytes, value: bytes | None) -> None:
        """One rule for a transaction's whole way: of three, a run that leaves out some would hardly see an answer."""
        if self.under_way is None:
            self.we_send(key, value)
        elif not self.under_way.answer:
            self.etcd_decides()
        else:
            self.the_answer_comes()

    def we_send(self, key: bytes, value: bytes | None) -> None:
        held = self.mirror.record(key)
        if held or value is not None:
            self.under_way = Transaction(key, value, held.mod_revision if held else 0)
            self.told_meanwhile = False
            self.mirror.expect(self.under_way.announcement)

    def etcd_decides(self) -> None:
        assert self.under_way
        mine, held = self.under_way, self.store.get(self.under_way.key)
        if (held.mod_revision if held else 0) != mine.mod_revision:
            mine.answer = (False, held, self.revision)
            return
        self._delete(mine.key) if mine.value is None else self._put(mine.key, mine.value, LEASE)
        mine.answer = (True, None, self.revision)

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
        named = set(KEYS) if UNIT in self.mirror.owners else set[bytes]()
        known = {key for key, held in self.mirror.records.items() if held.lease == LEASE} - {OWNER}
        assert set(self.mirror.unnamed(LEASE)) == known - named
        if not self.unseen and self.under_way is None:
            assert self.mirror.records == self.store
            assert self.known == {key: state(self.store, key) for key in KEYS}


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=examples(500), stateful_step_count=40)


def test_who_waits_is_told_when_it_becomes_known_whose_the_key_is() -> None:
    mirror, now = Mirror(CLUSTER), Revision(5)
    mirror.replace((PREFIX, OWNER), [Record(KEYS[0], b"0", LEASE, now, now, 1)], 5)
    mirror.contest(WAITER, KEYS)
    owner = OwnerRecord(namespace="shop", pod="pod-1", node="", grpc_services=(), keys=KEYS)
    assert mirror.apply([Put(Record(OWNER, owner.to_json(), LEASE, now, now, 1))]) == {UNIT, WAITER}


def test_who_has_lost_a_key_to_another_looks_again_though_the_answer_of_that_transaction_is_lost() -> None:
    mirror, key, winner = Mirror(CLUSTER), KEYS[0], LeaseId(lease_id(CLUSTER, WAITER))
    owner = OwnerRecord(namespace="shop", pod="pod-1", keys=KEYS)
    held = [(OWNER, owner.to_json(), LEASE), (key, b"0", LEASE)]
    records = [Record(name, value, lease, Revision(2), Revision(2), 1) for name, value, lease in held]
    mirror.replace((PREFIX, OWNER), records, 2)
    announcement = Announcement({key: (winner, b"1")}, [key], [])
    mirror.expect(announcement)
    assert not mirror.apply([Put(Record(key, b"1", winner, Revision(2), Revision(3), 2))])
    assert mirror.expect_no_more(announcement) == {UNIT}


def test_what_goes_in_a_message_after_its_owner_record_concerns_the_owner() -> None:
    """It may have planned in between, and believed it there."""
    mirror, key = Mirror(CLUSTER), KEYS[0]
    owned = OwnerRecord(namespace="shop", pod="pod-1", keys=KEYS).to_json()
    held = [Record(name, value, LEASE, Revision(2), Revision(2), 1) for name, value in ((OWNER, owned), (key, b"0"))]
    mirror.replace((PREFIX, OWNER), held, 2)
    assert mirror.apply([Deleted(OWNER, Revision(3))]) == {UNIT}
    assert mirror.apply([Deleted(key, Revision(3))]) == {UNIT}
    assert mirror.apply([Put(Record(key, b"x", STRANGER, Revision(4), Revision(4), 1))]) == set()


def test_what_came_and_went_before_anybody_knew_whose_it_was_is_missed_once_it_is_known() -> None:
    """The key's watch lags behind that of the owner records, by a whole life of the unit: put at 5, gone at 9."""
    mirror, key = Mirror(CLUSTER), KEYS[0]
    owned = OwnerRecord(namespace="shop", pod="pod-1", keys=KEYS).to_json()
    mirror.apply([Put(Record(OWNER, owned, LEASE, Revision(5), Revision(5), 1)), Deleted(OWNER, Revision(9))])
    mirror.apply([Put(Record(key, b"0", LEASE, Revision(5), Revision(5), 1))])
    announcement = Announcement({OWNER: (LEASE, owned)}, [OWNER], [])  # all that is lacking, as far as is known
    mirror.expect(announcement)
    mirror.apply([Deleted(key, Revision(9))])
    assert mirror.note_put(UNIT, Record(OWNER, owned, LEASE, Revision(10), Revision(10), 1)) == {UNIT}


def test_each_unit_whose_owner_record_names_a_key_hears_of_it() -> None:
    """Two name it while an address moves; that the one who has lost it goes says nothing of the other."""
    mirror, key = Mirror(CLUSTER), KEYS[0]
    owned = OwnerRecord(namespace="shop", pod="pod-1", keys=KEYS).to_json()
    other, theirs = owner_key(CLUSTER, WAITER), LeaseId(lease_id(CLUSTER, WAITER))
    held = [(key, b"0", LEASE), (OWNER, owned, LEASE), (other, owned, theirs)]  # found at a start, in order of keys
    records = [Record(name, value, lease, Revision(2), Revision(2), 1) for name, value, lease in held]
    mirror.replace((PREFIX, OWNER, other), records, 2)
    mirror.apply([Deleted(other, Revision(3))])
    assert mirror.apply([Deleted(key, Revision(4))]) == {UNIT}


def test_what_carries_the_lease_of_a_unit_and_is_named_nowhere_is_known() -> None:
    mirror, key = Mirror(CLUSTER), KEYS[0]
    owned = OwnerRecord(namespace="shop", pod="pod-1", keys=KEYS).to_json()

    def put(name: bytes, value: bytes, revision: int, lease: LeaseId = LEASE) -> None:
        mirror.apply([Put(Record(name, value, lease, Revision(revision), Revision(revision), 1))])

    put(key, b"0", 2)
    assert list(mirror.unnamed(LEASE)) == [key]
    put(OWNER, owned, 2)
    assert not mirror.unnamed(LEASE)
    put(OWNER, b"damaged", 3)
    assert list(mirror.unnamed(LEASE)) == [key]
    put(OWNER, owned, 4)
    mirror.apply([Deleted(OWNER, Revision(5))])
    assert list(mirror.unnamed(LEASE)) == [key]
    put(key, b"theirs", 6, STRANGER)
    assert not mirror.unnamed(LEASE)
    assert list(mirror.unnamed(STRANGER)) == [key]
    put(OWNER, owned, 7)
    put(key, b"0", 8)
    assert not mirror.has_unnamed
    put(OWNER, OwnerRecord(namespace="shop", pod="pod-1").to_json(), 9)
    assert list(mirror.unnamed(LEASE)) == [key]
    mirror.apply([Deleted(key, Revision(10))])
    assert not mirror.has_unnamed


def test_an_edit_under_our_lease_while_we_write_is_no_echo() -> None:
    """An admin's `etcdctl put --ignore-lease` comes between our write and its answer."""
    mirror, before, ours, theirs = Mirror(CLUSTER), Revision(5), Revision(6), Revision(7)
    owner = OwnerRecord(namespace="shop", pod="pod-1", node="", grpc_services=(), keys=KEYS)
    mirror.replace((OWNER,), [Record(OWNER, owner.to_json(), LEASE, before, before, 1)], 5)
    mine = Transaction(KEYS[0], b"1", 0)
    mirror.expect(mine.announcement)
    written = Record(KEYS[0], b"1", LEASE, ours, ours, 1)
    assert not mirror.apply([Put(written)])
    assert mirror.apply([Put(Record(KEYS[0], b"x", LEASE, ours, theirs, 2))]) == {UNIT}
    assert mirror.note_put(UNIT, written) == {UNIT}
