"""Two clusters with owner records of one key do not overwrite each other for ever; any other overwrite is repaired."""

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.registry.own import OwnerRecord, owner_key
from grpc_etcd_operator.core.desired import Desired, DesiredRecord, Owner
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.plan import (
    DISPUTE_SECONDS,
    MOST_DISPUTES,
    MOST_REPAIRS,
    REPAIRS,
    Disputes,
    Plan,
    make_plan,
)
from grpc_etcd_operator.core.reasons import Reason
from tests.unit.operator_core.test_plan import Store, Stored, make_wanted

WANTED = make_wanted(9000)


class Cluster:
    """The operator of one cluster id, with one Pod, on an etcd that all share."""

    def __init__(self, name: str, store: Store) -> None:
        self.name, self.store, self.uid = name, store, f"pod of {name}"
        self.lease, self.disputes = lease_id(name, self.uid), Disputes()

    def record(self, key: bytes) -> Stored | None:
        return self.store.record(key)

    def owner(self, uid: str) -> OwnerRecord | None:
        stored = self.store.record(owner_key(self.name, uid))
        parsed = OwnerRecord.from_json(stored.value) if stored else None
        return parsed if isinstance(parsed, OwnerRecord) else None

    def unnamed(self, _: int) -> tuple[bytes, ...]:
        return ()

    def plan(self, now: float, *wanted: DesiredRecord) -> Plan:
        desired = Desired(Owner(self.uid, "shop", self.uid), wanted, ("shop/greeter",))
        is_lost = partial(self.disputes.is_lost, now=now)
        return make_plan(desired, self.name, self, lambda _key, _lease: None, None, is_lost)

    def write(self, now: float, *wanted: DesiredRecord) -> Plan:
        plan = self.plan(now, *wanted)
        self.store.apply(plan)
        return plan

    def names(self, key: bytes) -> bool:
        owner = self.owner(self.uid)
        return owner is not None and key in owner.keys


@given(st.text(min_size=1), st.text(min_size=1), st.lists(st.booleans(), min_size=60, max_size=60))
def test_of_two_clusters_that_claim_one_key_one_gives_way(one: str, two: str, turns: list[bool]) -> None:
    store = Store()
    first, second = Cluster(f"1{one}", store), Cluster(f"2{two}", store)
    first.write(0.0, WANTED)
    del store.records[WANTED.key]  # by hand, say, and the other one is faster
    second.write(0.0, WANTED)
    plans = [(first if is_first else second).write(number / 60, WANTED) for number, is_first in enumerate(turns)]
    plans += [each.write(1.0, WANTED) for _ in range(2 * MOST_REPAIRS) for each in (first, second)]
    assert sum(not plan.is_empty for plan in plans) <= 2 * MOST_REPAIRS
    assert first.names(WANTED.key) + second.names(WANTED.key) == 1
    holder, other = (first, second) if first.names(WANTED.key) else (second, first)
    assert store.records[WANTED.key].lease == holder.lease < other.lease
    assert [fault.reason for fault in other.plan(1.0, WANTED).faults] == [Reason.KEY_TAKEN]
    holder.write(2.0)
    other.write(2.0, WANTED)
    assert store.records[WANTED.key].lease == other.lease


@given(st.integers(1, 2**63 - 1))
def test_a_foreign_overwrite_now_and_then_is_repaired_every_time(foreign: int) -> None:
    cluster, store = Cluster("c1", Store()), Store()
    cluster.store = store
    for number in range(10 * REPAIRS):
        cluster.write(number * (DISPUTE_SECONDS / REPAIRS + 1), WANTED)
        assert store.records[WANTED.key].lease == cluster.lease
        store.put(WANTED.key, b"vandal", foreign)


def test_who_writes_again_and_again_whatever_happens_is_left_alone_in_the_end() -> None:
    store = Store()
    cluster = Cluster("c1", store)
    cluster.write(0.0, WANTED)
    repairs = 0
    for _ in range(10 * MOST_REPAIRS):
        store.put(WANTED.key, b"vandal", cluster.lease + 1)
        repairs += not cluster.write(1.0, WANTED).is_empty
    assert repairs == MOST_REPAIRS + 1, "the last one takes it out of the owner record"


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.0, DISPUTE_SECONDS)), max_size=200))
def test_disputes_are_forgotten_with_time(overwrites: list[tuple[int, float]]) -> None:
    disputes, now, seen = Disputes(), 0.0, dict[int, float]()
    for number, pause in overwrites:
        now += pause
        disputes.is_lost(b"%d" % number, Stored(b"", 1, number), 2, now)
        seen[number] = now
        assert len(disputes) <= len([at for at in seen.values() if now - at <= DISPUTE_SECONDS])


def test_however_many_keys_are_overwritten_few_are_remembered() -> None:
    disputes = Disputes()
    for number in range(MOST_DISPUTES + 100):
        disputes.is_lost(b"%d" % number, Stored(b"", 1, 1), 2, 0.0)
    assert len(disputes) <= MOST_DISPUTES + 1
