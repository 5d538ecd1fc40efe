"""Who holds a claim keeps it, nobody else's key ever comes below it, and none of that costs more among many."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from grpc_etcd.layouts.index import LAYOUT_NAMES, WITHOUT_PREFIX
from grpc_etcd_operator.core.claims import (
    Ledger,
    Rules,
    claims_of,
    parse_etcds,
    read_claims,
    write_claims,
)
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.services import GrpcService, parse_service
from testbed.conditions import existing
from testbed.examples import examples
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service, read_raw_pod

Make = Callable[..., GrpcService]
Raw = dict[str, Any]
ETCDS = {"default": "one", "alias": "one", "second": "two"}
PREFIXES = {"default": None, "alias": None, "second": None}
ALLOWED = ("jupiter", "teams/a", "grpc-etcd", "/grpc-etcd-not")  # the settings refuse one of them
NAMES = ["payments", "greeter", "grpc:payments:v1:unknown-mode", "kitex", "x", "a", "job", "registry-etcd", "grpc-etcd"]
OWN_PREFIXES = [
    *(
        "",
        "/",
        "jupiter",
        "/jupiter",
        "jupiter/payments",
        "jupiter/payments/providers",
        "payments",
        "payments/",
        "teams",
    ),
    *(
        "/teams/a",
        "teams/a/b",
        "/grpc-etcd",
        "grpc-etcd/owner",
        "/grpc-etcd-not",
        "kitex",
        "prometheus",
        "prometheus/job",
    ),
]


def grant(cluster_cache: ClusterCache, clock: list[int], store: dict[str, Raw] | None = None) -> None:
    """Grant all that is asked for, as the leader does: reserve, write to the status, take the answer."""
    while uid := cluster_cache.asking.next():
        clock[0] += 1
        claims = cluster_cache.begin_grant(uid, f"2026-01-01T00:00:00.{clock[0]:06}Z")
        if claims is None:
            cluster_cache.judge_again(uid)
            continue
        service = cluster_cache.services[uid]
        if store is not None:
            store[uid]["status"] = {"claims": claims}
        cluster_cache.note_service(replace(service, status={"claims": claims}))
        cluster_cache.end_grant(uid)


def make_world(*services: GrpcService, shared_names: bool = False, rules: Rules | None = None) -> ClusterCache:
    cluster_cache = ClusterCache(ETCDS, shared_names=shared_names, rules=rules)
    for each in services:
        cluster_cache.note_service(each)
    grant(cluster_cache, [0])
    return cluster_cache


def accepted(cluster_cache: ClusterCache) -> set[str]:
    return {uid for uid in cluster_cache.services if cluster_cache.verdict(uid).accepted}


def test_of_those_that_hold_nothing_the_oldest_is_first(service: Make) -> None:
    young = service("u0", namespace="shop", created="2026-01-01T00:00:02Z")
    old = service("u1", namespace="bank", created="2026-01-01T00:00:01Z")
    assert accepted(make_world(young, old)) == accepted(make_world(old, young)) == {"u1"}


def test_whoever_renames_old_objects_does_not_get_ahead_of_who_holds_nothing_yet() -> None:
    cluster_cache = make_world(parse_service(make_raw_service("old")))
    renamed = parse_service(make_raw_service("old", name="renamed"))
    cluster_cache.note_service(replace(renamed, status=cluster_cache.services["old"].status))
    cluster_cache.note_service(parse_service(make_raw_service("young", name="other", created="2026-01-02T00:00:00Z")))
    assert [cluster_cache.asking.next(), cluster_cache.asking.next()] == ["young", "old"]


def test_of_those_that_ask_for_more_whoever_has_asked_first_comes_first() -> None:
    old = parse_service(make_raw_service("old"))
    young = parse_service(make_raw_service("young", name="other", created="2026-01-02T00:00:00Z"))
    cluster_cache = make_world(old, young)

    def rename(uid: str, name: str) -> None:
        known = cluster_cache.services[uid]
        renamed = parse_service(make_raw_service(uid, name=name, created=known.created))
        cluster_cache.note_service(replace(renamed, status=known.status))

    for uid in ("young", "old"):
        rename(uid, f"{uid}-renamed")
    assert [cluster_cache.asking.next(), cluster_cache.asking.next()] == ["young", "old"]
    for uid in ("old", "young"):  # whose grants have failed
        cluster_cache.asking.wait_again(uid)
    rename("old", "old-renamed-again")
    assert [cluster_cache.asking.next(), cluster_cache.asking.next()] == ["old", "young"]


def test_the_claim_counts_and_not_the_age_of_the_object(service: Make) -> None:
    clock = [0]
    cluster_cache = ClusterCache(ETCDS)
    cluster_cache.note_service(service("u0", name="parked", namespace="evil", created="2026-01-01T00:00:00Z"))
    grant(cluster_cache, clock)
    cluster_cache.note_service(service("u1", name="payments", namespace="shop", created="2026-01-01T00:00:09Z"))
    grant(cluster_cache, clock)
    renamed = service("u0", name="payments", namespace="evil", created="2026-01-01T00:00:00Z")
    cluster_cache.note_service(replace(renamed, name="parked", status=cluster_cache.services["u0"].status))
    grant(cluster_cache, clock)
    assert cluster_cache.verdict("u0").reason == "NameTaken"
    assert "shop/payments" in cluster_cache.verdict("u0").message
    assert "spec.name" in cluster_cache.verdict("u0").message
    assert cluster_cache.verdict("u1").accepted


def test_whoever_waits_gets_the_name_when_it_is_free(service: Make) -> None:
    clock = [0]
    cluster_cache = make_world(service("u0", namespace="shop"))
    waiting = [service(f"u{number}", namespace="bank", created=f"2026-01-02T00:00:0{number}Z") for number in (1, 2)]
    for each in [*waiting, service("u3", namespace="lab", created="2026-01-01T12:00:00Z")]:
        cluster_cache.note_service(each)
    grant(cluster_cache, clock)
    assert accepted(cluster_cache) == {"u0"}
    units = cluster_cache.forget_service("u0")
    assert {"u1", "u2", "u3"} <= units
    grant(cluster_cache, clock)
    assert accepted(cluster_cache) == {"u3"}
    cluster_cache.forget_service("u3")
    grant(cluster_cache, clock)
    assert accepted(cluster_cache) == {"u1", "u2"}


def test_names_are_shared_where_an_admin_allows_it_and_nothing_lies_within_another(service: Make) -> None:
    rules = Rules(allowed=["jupiter"])
    one, two = service("u0", namespace="shop"), service("u1", namespace="bank")
    within = service("u2", name="x", namespace="lab", prefix="jupiter/greeter")
    assert accepted(make_world(one, two, within, shared_names=True, rules=rules)) == {"u0", "u1"}
    assert accepted(make_world(one, two, within, rules=rules)) == {"u0"}


def test_of_two_that_hold_the_same_the_earlier_claim_counts(service: Make) -> None:
    claims = [{"registry": "default", "prefix": prefix} for prefix in ("/jupiter/greeter/", POLICY)]
    later = [{**each, "since": "2026-01-01T00:00:02.000000Z"} for each in claims]
    earlier = [{**each, "since": "2026-01-01T00:00:01.000000Z"} for each in claims]
    one = replace(service("u0", namespace="shop"), status={"claims": later})
    two = replace(service("u1", namespace="bank", created="2026-02-01T00:00:00Z"), status={"claims": earlier})
    for order in ((one, two), (two, one)):
        cluster_cache = make_world(*order)
        assert accepted(cluster_cache) == {"u1"}
        assert not cluster_cache.keeps("u0")
        rest = cluster_cache.find_spare("u0", lambda _service, _claim: False)
        assert rest == []


POLICY = "/grpc-etcd/policy/jupiter/greeter/"


def test_a_service_without_a_usable_spec_claims_nothing(service: Make) -> None:
    cluster_cache = make_world(service(selector={}))
    assert cluster_cache.verdict("s1").reason == "InvalidSpec"
    assert not cluster_cache.asking


def test_statuses_are_read_with_tolerance() -> None:
    good = {"registry": "default", "prefix": "/a/", "since": "t"}
    assert list(read_claims({"claims": [good, {"registry": 1}, "x", None, {**good, "since": "u"}]}).values()) == ["t"]
    assert read_claims({"claims": "x"}) == read_claims({}) == {}


def test_registries_that_share_an_endpoint_are_one_etcd() -> None:
    etcds = parse_etcds({"a": ["h1:1"], "b": ["http://H2:1"], "c": ["h3:1"], "d": ["h1:1", "https://h2:1"]})
    assert etcds == {"a": "a", "b": "a", "c": "c", "d": "a"}
    assert set(parse_etcds({"a": ["http://h1.shop:1/"], "b": ["h1.shop:1"], "c": ["h1.shop.:01"]}).values()) == {"a"}


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@given(st.text(min_size=1, max_size=6), st.sampled_from(["grpc", "http", "govern"]))
def test_every_key_of_a_layout_lies_below_a_claim(layout: str, name: str, scheme: str) -> None:
    raw = make_raw_service(layouts=[layout], metricsPort="metrics", policy={"timeout": "5s"}, scheme=scheme)
    raw["spec"]["name"] = name
    asks = parse_service(raw)
    if asks.spec is None:
        return
    cluster_cache = make_world(asks)
    pod = read_raw_pod(make_raw_pod(ports={"grpc": 9000, "metrics": 9100}))
    cluster_cache.note_pod(pod)
    claims = [claim.prefix for claim in claims_of(asks.spec, ETCDS)]
    for unit in ("p1", "s1"):
        desired = cluster_cache.desired(unit, "default")
        assert desired
        assert all(any((each.key + b"/").startswith(prefix) for prefix in claims) for each in desired.wanted)


EVIL_SPECS = st.tuples(
    st.fixed_dictionaries(
        {
            "selector": st.just({"matchLabels": {"app": "greeter"}}),
            "name": st.just("payments") | st.sampled_from(NAMES) | st.text(min_size=1, max_size=3),
            "prefix": st.sampled_from(OWN_PREFIXES),
            "layouts": st.lists(st.sampled_from(LAYOUT_NAMES), min_size=1, max_size=3, unique=True),
            "registries": st.sampled_from(
                [["default"], ["alias"], ["second"], ["default", "second"], ["alias", "unknown"]]
            ),
            "policy": st.just({"timeout": "9s"}),
        }
    ),
    st.sampled_from(
        list[Raw]([{}, {"metricsPort": 9100}, {"policy": {"timeout": "1s"}}, {"scheme": "http"}, {"enable": False}])
    ),
).map(lambda both: both[0] | both[1])


class HostileTenant(RuleBasedStateMachine):
    """Shop holds a name; evil applies whatever it likes. The world is what a judge makes of Kubernetes' objects."""

    def __init__(self) -> None:
        super().__init__()
        self.rules_ = Rules(allowed=ALLOWED)
        self.store: dict[str, Raw] = {}
        self.clock = [0]
        self.number = 0
        self.cluster_cache = self.make()

    def make(self) -> ClusterCache:
        cluster_cache = ClusterCache(ETCDS, rules=self.rules_)
        for namespace in ("shop", "evil"):
            cluster_cache.note_pod(read_raw_pod(make_raw_pod(f"pod-{namespace}", namespace=namespace)))
        return cluster_cache

    def note(self, uid: str) -> None:
        self.cluster_cache.note_service(parse_service(self.store[uid], PREFIXES))
        grant(self.cluster_cache, self.clock, self.store)

    @initialize(
        layouts=st.lists(st.sampled_from(LAYOUT_NAMES), min_size=1, max_size=7, unique=True),
        registries=st.sampled_from([["default"], ["second"], ["alias", "second"]]),
        deep=st.booleans(),
        evils=st.lists(EVIL_SPECS, min_size=1, max_size=3),
    )
    def shop_is_there(self, layouts: list[str], registries: list[str], evils: list[Raw], *, deep: bool) -> None:
        if deep:
            layouts = [each for each in layouts if each not in WITHOUT_PREFIX] or ["go-zero"]
        made: Raw = {"layouts": layouts, "registries": registries, "metricsPort": 9100}
        made |= {"prefix": "teams/a/x"} if deep else {}
        self.store["shop"] = make_raw_service("shop", name="payments", namespace="shop", **made)
        self.store["shop"]["metadata"]["creationTimestamp"] = "2026-06-01T00:00:00Z"
        self.note("shop")
        assert self.cluster_cache.verdict("shop").accepted
        self.claims = read_claims(self.store["shop"]["status"])
        for which, spec in enumerate(evils):  # a run in which nobody applies anything later has something to hold
            self.evil_applies(which, spec)

    @rule(which=st.integers(0, 3), spec=EVIL_SPECS)
    def evil_applies(self, which: int, spec: Raw) -> None:
        uid = next((uid for uid in self.store if uid.startswith(f"evil-{which}-")), "")
        if not uid:
            self.number += 1
            uid = f"evil-{which}-{self.number}"
            self.store[uid] = make_raw_service(uid, name=f"evil-{which}", namespace="evil")
        raw = self.store[uid]
        raw["metadata"]["generation"] += 1
        raw["spec"] = {each: value for each, value in spec.items() if each != "prefix" or value}
        self.note(uid)

    @rule(which=st.integers(0, 3))
    def evil_deletes(self, which: int) -> None:
        for uid in [uid for uid in self.store if uid.startswith(f"evil-{which}-")]:
            del self.store[uid]
            self.cluster_cache.forget_service(uid)
        grant(self.cluster_cache, self.clock, self.store)

    @rule(which=st.integers(0, 3))
    def evils_status_is_lost(self, which: int) -> None:
        for uid in [uid for uid in self.store if uid.startswith(f"evil-{which}-")]:
            self.store[uid].pop("status", None)
            self.note(uid)

    @rule(orders=st.randoms(use_true_random=False))
    def the_judge_restarts(self, orders: Any) -> None:
        before = {uid: self.cluster_cache.verdict(uid) for uid in self.store}
        self.cluster_cache = self.make()
        uids = list(self.store)
        orders.shuffle(uids)
        for uid in uids:
            self.cluster_cache.note_service(parse_service(self.store[uid], PREFIXES))
        grant(self.cluster_cache, self.clock, self.store)
        assert {uid: verdict.accepted for uid, verdict in before.items()} == {
            uid: self.cluster_cache.verdict(uid).accepted for uid in self.store
        }

    @rule(which=st.integers(0, 3))
    def what_evil_lets_go_is_released(self, which: int) -> None:
        for uid in [uid for uid in self.store if uid.startswith(f"evil-{which}-")]:
            rest = self.cluster_cache.find_spare(uid, lambda _service, _claim: False)
            if rest is not None:
                self.store[uid]["status"] = {"claims": rest}
                self.note(uid)

    @invariant()
    def shop_keeps_what_it_holds(self) -> None:
        if "shop" in self.store:
            assert self.cluster_cache.verdict("shop").accepted
            assert read_claims(self.store["shop"]["status"]) == self.claims

    @invariant()
    def no_claim_of_evil_holds_keys_of_shop(self) -> None:
        mine = {(ETCDS[claim.registry], claim.prefix) for claim in getattr(self, "claims", {})}
        for uid in [uid for uid in self.store if uid != "shop" and self.cluster_cache.verdict(uid).accepted]:
            for claim in claims_of(existing(self.cluster_cache.services[uid].spec), ETCDS):
                same = [prefix for etcd, prefix in mine if etcd == ETCDS[claim.registry]]
                assert not any(prefix.startswith(claim.prefix) or claim.prefix.startswith(prefix) for prefix in same)

    @invariant()
    def nothing_of_evil_is_wanted_below_it(self) -> None:
        held = {(ETCDS[claim.registry], claim.prefix) for claim in getattr(self, "claims", {})}
        for registry, etcd in ETCDS.items():
            for uid in [*(uid for uid in self.store if uid != "shop"), "pod-evil"]:
                desired = self.cluster_cache.desired(uid, registry)
                assert desired
                for wanted in desired.wanted:
                    assert not any(where == etcd and (wanted.key + b"/").startswith(prefix) for where, prefix in held)
                    policy = wanted.key.startswith(b"/grpc-etcd/policy/")
                    assert policy or not wanted.key.startswith(b"/grpc-etcd/")


@pytest.mark.hypothesis
def test_a_hostile_tenant_reaches_nothing_below_anothers_claim() -> None:
    often = settings(max_examples=examples(150), stateful_step_count=25)
    run_state_machine_as_test(HostileTenant, settings=often)


def cost(many: int, work: Callable[[ClusterCache, int], None]) -> float:
    """Give the seconds that one event takes among so many GrpcServices of one name, the best of several."""
    cluster_cache = ClusterCache(ETCDS)
    cluster_cache.note_service(parse_service(make_raw_service("shop", name="payments", namespace="shop")))
    grant(cluster_cache, [0])
    for number in range(many):
        raw = make_raw_service(f"e{number}", name=f"o{number}", namespace="evil", created="2025-01-01T00:00:00Z")
        raw["spec"]["name"] = "payments"
        cluster_cache.note_service(parse_service(raw))
    times = []
    for turn in range(30):
        began = time.perf_counter()
        work(cluster_cache, turn)
        times.append(time.perf_counter() - began)
    return min(times)


def edit_shop(cluster_cache: ClusterCache, turn: int) -> None:
    raw = make_raw_service("shop", name="payments", namespace="shop", weight=turn + 1)
    cluster_cache.note_service(replace(parse_service(raw), status=cluster_cache.services["shop"].status))


def edit_evil(cluster_cache: ClusterCache, turn: int) -> None:
    raw = make_raw_service("e1", name="o1", namespace="evil", weight=turn + 1)
    raw["spec"]["name"] = "payments"
    cluster_cache.note_service(parse_service(raw))


@pytest.mark.parametrize("work", [edit_shop, edit_evil])
def test_an_event_costs_the_same_however_many_want_the_name(work: Callable[[ClusterCache, int], None]) -> None:
    few, many = cost(10, work), cost(10_000, work)
    assert many < 20 * few + 0.001, (few, many)  # the old way took 1,000 times as long


def test_whoever_waits_is_looked_at_only_when_what_it_waits_for_is_released() -> None:
    ledger = Ledger({"default": "one"}, frozenset())
    claim = next(iter(read_claims({"claims": [{"registry": "default", "prefix": "/a/", "since": "1"}]})))
    assert ledger.hold("holder", "shop", "", {claim: "1"}) == set()
    assert ledger.find_blocked("waiter", "bank", [claim])
    ledger.wait("waiter", "holder")
    other = claim._replace(prefix=b"/b/")
    assert ledger.hold("holder", "shop", "", {claim: "1", other: "2"}) == set()
    assert ledger.hold("holder", "shop", "", {other: "2"}) == {"waiter"}


def test_refused_services_do_not_make_the_events_of_their_pods_dearer() -> None:
    def work(cluster_cache: ClusterCache, turn: int) -> None:
        pod = read_raw_pod(make_raw_pod(namespace="evil", ip=f"10.0.0.{turn}"))
        cluster_cache.note_pod(pod)
        cluster_cache.selecting(pod)
        assert cluster_cache.desired("p1", "default")

    few, many = cost(10, work), cost(10_000, work)
    assert many < 20 * few + 0.001, (few, many)


def test_what_stands_stays_while_one_that_takes_the_place_of_another_asks(service: Make) -> None:
    cluster_cache = make_world(service("u0"))
    cluster_cache.note_pod(read_raw_pod(make_raw_pod()))
    cluster_cache.note_service(service("u1"))
    cluster_cache.forget_service("u0")
    desired = cluster_cache.desired("p1", "default")
    assert desired
    assert (desired.wanted, desired.keep_references) == ((), frozenset({"shop/greeter"}))


def test_a_name_under_two_registries_of_one_etcd_is_one_name(service: Make) -> None:
    mine = service("u0", namespace="shop")
    alias, other = (
        service(f"u{number}", namespace="bank", registries=[name]) for number, name in ((1, "alias"), (2, "second"))
    )
    assert accepted(make_world(mine, alias, other)) == {"u0", "u2"}


UIDS = {"u0": "shop", "u1": "shop", "v0": "evil", "v1": "evil"}
WORDS = ["a", "b", "c"]
specs = st.fixed_dictionaries(
    {
        "name": st.sampled_from(WORDS),
        "layouts": st.sampled_from([["go-zero"], ["jupiter-v2"], ["go-zero", "jupiter-v2"], ["no-layout"]]),
        "registries": st.sampled_from([["default"], ["default", "second"], ["default", "unknown"]]),
    }
)
held_claims = st.dictionaries(st.tuples(st.sampled_from(WORDS), st.booleans()), st.integers(1, 4), max_size=4)
facts = st.one_of(
    st.tuples(st.just("note"), st.sampled_from(sorted(UIDS)), specs, st.none() | held_claims),
    st.tuples(st.just("slip"), st.sampled_from(sorted(UIDS))),
    st.tuples(st.just("forget"), st.sampled_from(sorted(UIDS))),
    st.tuples(st.just("grant")),
    st.tuples(st.just("refuse")),
)


class Tenants:
    """Specs and statuses as anybody may write them, and a leader that grants one claim at a time, or cannot."""

    def __init__(self) -> None:
        self.raws: dict[str, Raw] = {}
        self.cluster_cache, self.numbers, self.clock = ClusterCache(ETCDS), dict.fromkeys(UIDS, 0), 0

    def take(self, what: str, *more: Any) -> None:
        getattr(self, what)(*more)

    def note(self, name: str, spec: Raw, held: dict[tuple[str, bool], int] | None) -> None:
        uid = f"{name}-{self.numbers[name]}"
        raw = self.raws.setdefault(uid, make_raw_service(uid, name=name, namespace=UIDS[name]))
        raw["metadata"]["generation"] += 1
        raw["spec"] |= spec
        if held is not None:
            layouts = [("jupiter-v2" if other else "go-zero", word, since) for (word, other), since in held.items()]
            raw["status"] = {"claims": [claim for each in layouts for claim in make_claims(*each)]}
        self.cluster_cache.note_service(parse_service(raw, PREFIXES))

    def slip(self, name: str) -> None:
        self.note(name, {"layouts": ["no-layout"]}, None)

    def forget(self, name: str) -> None:
        if self.raws.pop(f"{name}-{self.numbers[name]}", None):
            self.cluster_cache.forget_service(f"{name}-{self.numbers[name]}")
            self.numbers[name] += 1

    def grant(self) -> None:
        uid = self.cluster_cache.asking.next()
        self.clock += 1
        claims = self.cluster_cache.begin_grant(uid, f"2026-01-01T00:00:09.{self.clock:06}Z") if uid else None
        if uid and claims:
            self.raws[uid]["status"] = {"claims": claims}
            self.cluster_cache.note_service(parse_service(self.raws[uid], PREFIXES))
            self.cluster_cache.end_grant(uid)

    def refuse(self) -> None:
        uid = self.cluster_cache.asking.next()
        if uid:
            self.cluster_cache.begin_grant(uid, "2026-01-01T00:00:09.000000Z")
            self.cluster_cache.end_grant(uid)
            self.cluster_cache.asking.wait_again(uid)


def make_claims(layout: str, word: str, since: int) -> list[dict[str, str]]:
    spec = parse_service(make_raw_service("x", name=word, layouts=[layout]), PREFIXES).spec
    assert spec
    return write_claims(dict.fromkeys(claims_of(spec, ETCDS), f"2026-01-01T00:00:0{since}.000000Z"))


def wanted(cluster_cache: ClusterCache, uids: set[str]) -> dict[tuple[str, str], Any]:
    return {(uid, registry): cluster_cache.desired(uid, registry) for uid in uids for registry in ETCDS}


@example(
    [
        ("note", "v0", {"name": "a", "layouts": ["go-zero", "jupiter-v2"], "registries": ["default"]}, None),
        ("grant",),
        ("note", "v0", {"layouts": ["jupiter-v2"]}, {("a", False): 1}),
    ]
)
@example(
    [
        ("note", "u1", {"name": "a", "layouts": ["go-zero"], "registries": ["default"]}, None),
        ("note", "v0", {"name": "a", "layouts": ["go-zero"], "registries": ["default"]}, {("c", False): 1}),
        ("grant",),
        ("note", "u0", {"name": "a", "layouts": ["go-zero"], "registries": ["default"]}, {("c", False): 1}),
        ("forget", "u0"),
    ]
)
@given(st.lists(facts, max_size=12))
def test_to_judge_all_again_changes_nothing_of_what_is_wanted_and_finds_no_more_to_release(
    steps: list[tuple[Any, ...]],
) -> None:
    tenants = Tenants()
    for each in steps:
        tenants.take(*each)
        cluster_cache = tenants.cluster_cache
        releasing, judged = (
            set(cluster_cache.releasing),
            set(cluster_cache.services) - cluster_cache.asking.keys(),
        )  # who asks has its turn yet
        before = wanted(cluster_cache, judged)
        for uid in cluster_cache.services:
            cluster_cache.judge_again(uid)
        assert wanted(cluster_cache, judged) == before
        assert set(cluster_cache.releasing) <= releasing


def test_a_registry_that_is_renamed_keeps_its_names_for_who_holds_them(service: Make) -> None:
    """The settings no longer have `old`: it may be any of those that they do have."""
    shop = replace(service("u0", namespace="shop", registries=["old"]), status=held("old"))
    parked, elsewhere = (service(f"u{n}", namespace=f"bank{n}", registries=["second"]) for n in (1, 2))
    cluster_cache = make_world(shop, parked)
    assert cluster_cache.verdict("u0").reason == "UnknownRegistry"
    assert cluster_cache.verdict("u1").reason == "NameTaken"
    cluster_cache.note_service(replace(elsewhere, status=held("second", since="2027-01-01T00:00:00.000000Z")))
    assert cluster_cache.verdict("u2").accepted  # who holds a name in another registry loses nothing
    cluster_cache.note_service(replace(service("u0", namespace="shop", registries=["second"]), status=shop.status))
    assert cluster_cache.verdict("u0").reason == "NameTaken"
    cluster_cache.forget_service("u2")
    grant(cluster_cache, [0])
    assert accepted(cluster_cache) == {"u0"}
    assert cluster_cache.verdict("u1").reason == "NameTaken"


def held(registry: str, since: str = "2026-01-01T00:00:00.000000Z") -> Raw:
    prefixes = ("/jupiter/greeter/", "/grpc-etcd/policy/jupiter/greeter/")
    return {"claims": [{"registry": registry, "prefix": each, "since": since} for each in prefixes]}
