"""A plan converges in one step, is empty the second time, ignores input order, and never touches a foreign record."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.layouts.index import LAYOUT_NAMES
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import OwnerRecord, owner_key
from grpc_etcd_operator.core.desired import Desired, DesiredRecord, Owner, make_pod_desired
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.plan import Plan, make_plan
from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.services import GrpcService

CLUSTER = "c1"
LAYOUT = Jupiter()
FOREIGN_LEASE = 77


class Stored(NamedTuple):
    value: bytes
    lease: int
    mod_revision: int


@dataclass
class Store:
    """etcd reduced to what a transaction does; refuses whatever the real one would refuse."""

    records: dict[bytes, Stored] = field(default_factory=dict)
    revision: int = 1

    def record(self, key: bytes) -> Stored | None:
        return self.records.get(key)

    def owner(self, uid: str) -> OwnerRecord | None:
        stored = self.records.get(owner_key(CLUSTER, uid))
        parsed = OwnerRecord.from_json(stored.value) if stored else None
        return parsed if isinstance(parsed, OwnerRecord) else None

    def unnamed(self, lease: int) -> set[bytes]:
        owner = self.owner("p1")
        mine = {key for key, held in self.records.items() if held.lease == lease} - {owner_key(CLUSTER, "p1")}
        return mine - set(owner.keys if owner else ())

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        self.revision += 1
        self.records[key] = Stored(value, lease, self.revision)

    def takes(self, plan: Plan) -> bool:
        """Say whether all that must still be true for a plan is so."""
        mod_revisions = {key: held.mod_revision for key, held in self.records.items()}
        leases = {key: held.lease for key, held in self.records.items()}
        return (
            all(mod_revisions.get(each.key, 0) == each.mod_revision for each in plan.puts)
            and all(mod_revisions.get(each.key, 0) == each.mod_revision for each in plan.requires)
            and all(leases.get(each.key, 0) == each.lease for each in plan.deletes)
            and all(mod_revisions.get(each.key) == each.mod_revision for each in plan.deletes if each.mod_revision)
            and all(leases.get(each.key, 0) != each.lease for each in plan.releases)
        )

    def apply(self, plan: Plan) -> None:
        assert self.takes(plan)
        for put in plan.puts:
            self.put(put.key, put.value, plan.lease)
        for delete in plan.deletes:
            self.records.pop(delete.key, None)

    def plan(self, desired: Desired, most: int | None = None) -> Plan:
        return make_plan(desired, CLUSTER, self, lambda _key, _lease: None, most)


def make_wanted(port: int, weight: int = 100, *, only_if_held: bool = False) -> DesiredRecord:
    endpoint = Endpoint(name="greeter", address=f"10.0.0.1:{port}", weight=weight, enable=not only_if_held)
    encoded = LAYOUT.encode("greeter", endpoint)
    assert isinstance(encoded, KeyValue)
    return DesiredRecord(encoded.key, encoded.value, "s1", LAYOUT, endpoint, only_if_held)


UNIT = Owner("p1", "shop", "pod-1", "node-1")
LEASE = lease_id(CLUSTER, "p1")
wanted = st.builds(make_wanted, st.integers(9000, 9006), st.sampled_from([1, 100]), only_if_held=st.booleans())
wanted_sets = st.lists(wanted, max_size=6, unique_by=lambda each: each.key)
foreign = st.dictionaries(st.integers(9000, 9006), st.sampled_from([0, FOREIGN_LEASE]), max_size=4)


def make_store(before: list[DesiredRecord], registered_by_others: dict[int, int]) -> Store:
    store = Store()
    for port, lease in registered_by_others.items():
        store.put(make_wanted(port).key, b"somebody else's", lease)
    store.apply(store.plan(Desired(UNIT, tuple(before), ("shop/greeter",))))
    return store


@given(wanted_sets, wanted_sets, foreign)
def test_a_plan_converges_in_one_step_and_is_empty_the_second_time(
    before: list[DesiredRecord], after: list[DesiredRecord], others: dict[int, int]
) -> None:
    store = make_store(before, others)
    desired = Desired(UNIT, tuple(after), ("shop/greeter",))
    store.apply(store.plan(desired))
    assert store.plan(desired).is_empty
    mine = {key for key, stored in store.records.items() if stored.lease == LEASE}
    owner = store.owner("p1")
    assert mine - {owner_key(CLUSTER, "p1")} == set(owner.keys if owner else ())


@given(wanted_sets, wanted_sets, foreign, st.sampled_from([None, b"damaged"]))
def test_a_unit_whose_owner_record_was_deleted_or_damaged_loses_what_it_no_longer_wants_and_nothing_else(
    before: list[DesiredRecord], after: list[DesiredRecord], others: dict[int, int], damage: bytes | None
) -> None:
    store, whole = make_store(before, others), make_store(before, others)
    if (stored := store.records.pop(owner_key(CLUSTER, "p1"), None)) and damage:
        store.records[owner_key(CLUSTER, "p1")] = stored._replace(value=damage, lease=0)
    desired = Desired(UNIT, tuple(after), ("shop/greeter",))
    for each in (store, whole):
        each.apply(each.plan(desired))
    assert store.plan(desired).is_empty
    mine = {key for key, stored in store.records.items() if stored.lease == LEASE}
    assert mine == {key for key, stored in whole.records.items() if stored.lease == LEASE}


def test_what_no_owner_record_names_stays_while_a_spec_that_it_may_be_of_cannot_be_obeyed() -> None:
    store = make_store([make_wanted(9000)], {})
    key = make_wanted(9000).key
    del store.records[owner_key(CLUSTER, "p1")]
    store.apply(store.plan(Desired(UNIT, keep_references=frozenset({"shop/greeter"}))))
    assert store.records[key].lease == LEASE
    owner = store.owner("p1")
    assert owner is not None
    assert (owner.keys, owner.grpc_services) == ((key,), ("shop/greeter",))
    store.apply(store.plan(Desired(UNIT)))
    assert not store.records


def test_a_key_that_is_no_text_under_a_lease_of_ours_leaves_the_rest_of_its_unit_alone() -> None:
    store, stays = make_store([make_wanted(9000)], {}), b"/jupiter/greeter/providers/grpc://\xff"
    store.put(stays, b"", LEASE)
    key = make_wanted(9001).key
    store.apply(store.plan(Desired(UNIT, (make_wanted(9001),), ("shop/greeter",), keeps=frozenset({stays}))))
    assert store.records.keys() == {key, stays, owner_key(CLUSTER, "p1")}
    store.apply(store.plan(Desired(UNIT)))
    assert not store.records


@given(wanted_sets, st.randoms(use_true_random=False), foreign)
def test_a_plan_ignores_the_order_of_its_input(
    after: list[DesiredRecord], random: Random, others: dict[int, int]
) -> None:
    shuffled = list(after)
    random.shuffle(shuffled)
    one, other = make_store([], others), make_store([], others)
    one.apply(one.plan(Desired(UNIT, tuple(after))))
    other.apply(other.plan(Desired(UNIT, tuple(shuffled))))
    assert {k: (v.value, v.lease) for k, v in one.records.items()} == {
        k: (v.value, v.lease) for k, v in other.records.items()
    }


@given(wanted_sets, wanted_sets, foreign)
def test_a_plan_never_touches_a_foreign_record(
    before: list[DesiredRecord], after: list[DesiredRecord], others: dict[int, int]
) -> None:
    store = make_store(before, others)
    keys = {make_wanted(port).key for port in others}
    foreign_before = {key: store.records[key] for key in keys}
    store.apply(store.plan(Desired(UNIT, tuple(after))))
    store.apply(store.plan(Desired(UNIT, gone=True)))
    assert {key: store.records[key] for key in keys} == foreign_before
    assert set(store.records) == keys


@given(wanted_sets, wanted_sets)
def test_keys_are_put_only_beside_their_owner_record(before: list[DesiredRecord], after: list[DesiredRecord]) -> None:
    """The owner record may have gone unseen, with its lease: then nobody would ever delete the key."""
    store = make_store(before, {})
    seen_by_the_planner = store.records.copy()
    plan = store.plan(Desired(UNIT, tuple(after), ("shop/greeter",)))
    if any(put.key != owner_key(CLUSTER, "p1") for put in plan.puts):
        stored = seen_by_the_planner.get(owner_key(CLUSTER, "p1"))
        guards = {put.key: put.mod_revision for put in plan.puts} | {r.key: r.mod_revision for r in plan.requires}
        assert guards[owner_key(CLUSTER, "p1")] == (stored.mod_revision if stored else 0)


@given(st.lists(wanted_sets, min_size=1, max_size=4), st.just([]) | wanted_sets, foreign, st.data())
def test_no_key_is_orphaned_however_old_what_the_planner_knows_is(
    history: list[list[DesiredRecord]], after: list[DesiredRecord], others: dict[int, int], data: st.DataObject
) -> None:
    store = make_store([], others)
    past = [store.records.copy()]
    for wanted in history:
        store.apply(store.plan(Desired(UNIT, tuple(wanted), ("shop/greeter",))))
        past.append(store.records.copy())
    known = Store(revision=store.revision)
    for key in sorted({key for records in past for key in records}):
        if record := data.draw(st.sampled_from(past)).get(key):
            known.records[key] = record
    plan = known.plan(Desired(UNIT, tuple(after), ("shop/greeter",)))
    if store.takes(plan):
        store.apply(plan)
    owner = store.owner("p1")
    mine = {key for key, stored in store.records.items() if stored.lease == LEASE}
    assert mine - {owner_key(CLUSTER, "p1")} <= set(owner.keys if owner else ())


def test_a_foreign_key_is_reported() -> None:
    store = make_store([], {9000: FOREIGN_LEASE})
    plan = store.plan(Desired(UNIT, (make_wanted(9000), make_wanted(9001))))
    assert [fault.reason for fault in plan.faults] == ["KeyTaken"]
    assert {put.key for put in plan.puts} == {make_wanted(9001).key, owner_key(CLUSTER, "p1")}


def test_a_foreign_overwrite_of_our_key_is_repaired() -> None:
    store = make_store([make_wanted(9000)], {})
    store.put(make_wanted(9000).key, b"overwritten", FOREIGN_LEASE)
    store.apply(store.plan(Desired(UNIT, (make_wanted(9000),))))
    assert store.records[make_wanted(9000).key].value == make_wanted(9000).value
    assert store.records[make_wanted(9000).key].lease == LEASE


def test_an_edit_in_place_keeps_enable_and_weight_until_the_owner_says_otherwise() -> None:
    store = make_store([make_wanted(9000)], {})
    edited = json.loads(make_wanted(9000).value) | {"enable": False, "weight": 7, "group": "lost"}
    store.put(make_wanted(9000).key, json.dumps(edited).encode(), 0)
    desired = Desired(UNIT, (make_wanted(9000),))
    store.apply(store.plan(desired))
    kept = store.records[make_wanted(9000).key]
    assert kept.lease == LEASE
    assert json.loads(kept.value) | {"enable": True, "weight": 100} == json.loads(make_wanted(9000).value)
    assert (json.loads(kept.value)["enable"], json.loads(kept.value)["weight"]) == (False, 7)
    assert store.plan(desired).is_empty
    store.apply(store.plan(Desired(UNIT, (make_wanted(9000, weight=50),))))
    assert store.records[make_wanted(9000).key].value == make_wanted(9000, weight=50).value


def test_an_address_moves_from_a_unit_that_no_longer_wants_it() -> None:
    store = make_store([make_wanted(9000)], {})
    desired = Desired(Owner("p2", "shop", "pod-2"), (make_wanted(9000),))
    plan = make_plan(desired, CLUSTER, store, lambda _key, lease: lease == LEASE)
    store.apply(plan)
    assert store.records[make_wanted(9000).key].lease == lease_id(CLUSTER, "p2")
    store.apply(store.plan(Desired(UNIT, gone=True)))
    assert store.records[make_wanted(9000).key].lease == lease_id(CLUSTER, "p2")
    assert store.owner("p1") is None


def test_a_drain_disables_what_is_there_and_creates_nothing(
    pod: Callable[..., Pod], service: Callable[..., GrpcService]
) -> None:
    draining = service(drain={"mode": "Disable"})
    ending = {"deletionTimestamp": {"seconds": 1_767_225_609}}
    up, down = (make_pod_desired(pod(**more), [draining], "default") for more in ({}, ending))
    store = Store()
    assert store.plan(down).is_empty
    store.apply(store.plan(up))
    store.apply(store.plan(down))
    held = [stored for key, stored in store.records.items() if key.startswith(b"/jupiter/")]
    assert [json.loads(stored.value)["enable"] for stored in held] == [False]


def test_a_pod_that_turns_unready_is_not_drained_and_has_no_key(
    pod: Callable[..., Pod], service: Callable[..., GrpcService]
) -> None:
    draining = service(drain={"mode": "Disable"})
    store = Store()
    store.apply(store.plan(make_pod_desired(pod(), [draining], "default")))
    store.apply(store.plan(make_pod_desired(pod(ready=False), [draining], "default")))
    assert not store.records


STALE = frozenset({"shop/greeter"})


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("now", ["10.0.0.1", "10.0.0.11", "110.0.0.1", "0.0.0.1", "10x0.0.1", "fd00::1"])
def test_what_is_to_stay_goes_when_its_pod_has_another_address(
    pod: Callable[..., Pod], service: Callable[..., GrpcService], layout: str, now: str
) -> None:
    store, asks = Store(), service(layouts=[layout], metricsPort=9100)
    store.apply(store.plan(make_pod_desired(pod(), [asks], "default")))
    before = dict(store.records)
    store.apply(store.plan(make_pod_desired(pod(ip=now), [], "default", kept=STALE)))
    assert store.records == (before if now == "10.0.0.1" else {})


def test_what_is_to_stay_of_an_ipv6_address_stays_with_it(
    pod: Callable[..., Pod], service: Callable[..., GrpcService]
) -> None:
    store, asks = Store(), service(layouts=[each for each in LAYOUT_NAMES if each != "kitex"])
    store.apply(store.plan(make_pod_desired(pod(ip="fd00::1"), [asks], "default")))
    before = dict(store.records)
    store.apply(store.plan(make_pod_desired(pod(ip="fd00::1"), [], "default", kept=STALE)))
    assert store.records == before
    store.apply(store.plan(make_pod_desired(pod(ip="d00::1"), [], "default", kept=STALE)))
    assert not store.records


@given(wanted_sets, wanted_sets, foreign)
def test_what_is_to_stay_is_neither_put_nor_deleted_and_stays_named(
    before: list[DesiredRecord], after: list[DesiredRecord], others: dict[int, int]
) -> None:
    store = make_store(before, others)
    mine = {key: stored for key, stored in store.records.items() if stored.lease == LEASE}
    desired = Desired(UNIT, tuple(after), ("shop/other",), keep_references=STALE)
    store.apply(store.plan(desired))
    assert store.plan(desired).is_empty
    for key in mine.keys() - {owner_key(CLUSTER, "p1")} - {each.key for each in after}:
        assert store.records[key] == mine[key]
        owner = store.owner("p1")
        assert owner
        assert key in owner.keys
        assert owner.behind(key) == ("shop/greeter",)
    store.apply(store.plan(Desired(UNIT, gone=True)))
    assert not {key for key, stored in store.records.items() if stored.lease == LEASE}


def test_of_two_services_of_a_pod_only_the_keys_of_the_one_that_is_kept_stay() -> None:
    store = Store()
    one, two = replace(make_wanted(9000), reference="shop/one"), replace(make_wanted(9001), reference="shop/two")
    store.apply(store.plan(Desired(UNIT, (one, two), ("shop/one", "shop/two"))))
    store.apply(store.plan(Desired(UNIT, (), (), keep_references=frozenset({"shop/two"}))))
    assert set(store.records) == {two.key, owner_key(CLUSTER, "p1")}


def test_single_keys_that_nobody_can_read_or_write_stay_as_they_are() -> None:
    store = make_store([make_wanted(9000), make_wanted(9001)], {})
    unknown = store.records.pop(make_wanted(9000).key)  # as the mirror has it: its prefix is refused
    desired = Desired(UNIT, (make_wanted(9000, weight=7),), keeps=frozenset({make_wanted(9000).key}))
    plan = store.plan(desired)
    assert {edit.key for edit in plan.puts} | {edit.key for edit in plan.deletes} == {
        make_wanted(9001).key,
        owner_key(CLUSTER, "p1"),
    }
    store.apply(plan)
    owner = store.owner("p1")
    assert owner
    assert owner.keys == (make_wanted(9000).key,)
    assert unknown.lease == LEASE


@given(wanted_sets, wanted_sets, foreign, st.integers(2, 9))
def test_what_one_transaction_cannot_hold_is_written_in_several_that_lead_to_the_same(
    before: list[DesiredRecord], after: list[DesiredRecord], others: dict[int, int], most: int
) -> None:
    desired = Desired(UNIT, tuple(after), ("shop/greeter",))
    whole, store = make_store(before, others), make_store(before, others)
    whole.apply(whole.plan(desired))
    for _ in range(20):
        plan = store.plan(desired, most)
        assert plan.size <= most
        store.apply(plan)
        owner = store.owner("p1")
        mine = {key for key, stored in store.records.items() if stored.lease == LEASE}
        assert mine - {owner_key(CLUSTER, "p1")} <= set(owner.keys if owner else ())
        if not plan.is_part:
            break
    assert store.plan(desired, most).is_empty
    assert {k: (v.value, v.lease) for k, v in store.records.items()} == {
        k: (v.value, v.lease) for k, v in whole.records.items()
    }


def test_each_key_has_its_turn_though_all_of_them_change_before_the_last_is_written() -> None:
    wanted, store = [make_wanted(9000 + number) for number in range(10)], Store()
    found = set[bytes]()
    for turn in range(3):
        values = tuple(replace(each, value=b"%d" % turn) for each in wanted)
        plan = store.plan(Desired(UNIT, values, ("shop/greeter",)), 5)
        found.update(put.key for put in plan.puts)
        assert (plan.is_part, plan.left) == (True, 6)
        store.apply(plan)
    assert found >= {each.key for each in wanted}


def test_a_service_is_written_and_a_unit_gone_only_with_the_last_part() -> None:
    wanted = tuple(make_wanted(9000 + number) for number in range(10))
    store = Store()
    desired = Desired(UNIT, wanted, ("shop/greeter",))
    parts = []
    while (plan := store.plan(desired, 5)).is_part:
        parts.append(plan.written)
        store.apply(plan)
    assert parts == [frozenset(), frozenset()]
    assert plan.written == {"s1"}
    store.apply(plan)
    first = store.plan(Desired(UNIT, gone=True), 5)
    assert (first.gone, len(first.deletes)) == (False, 4)
    while not store.plan(Desired(UNIT, gone=True), 5).gone:
        store.apply(store.plan(Desired(UNIT, gone=True), 5))
    store.apply(store.plan(Desired(UNIT, gone=True), 5))
    assert not store.records


def test_large_values_are_written_in_several_transactions() -> None:
    wanted = tuple(replace(make_wanted(9000 + number), value=b"x" * 200_000) for number in range(4))
    plan = Store().plan(Desired(UNIT, wanted), 120)
    assert plan.is_part
    assert sum(len(put.value) for put in plan.puts) < 500_000
    alone = Store().plan(Desired(UNIT, (replace(wanted[0], value=b"x" * 600_000),)), 120)
    assert not alone.is_part
