"""The cache follows the Services that GrpcServices name: what order things come in makes no difference."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from grpc_etcd_operator.core.claims import claims_of, write_claims
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.references import resolve
from grpc_etcd_operator.core.services import GrpcService, parse_service
from grpc_etcd_operator.core.targets import Target, parse_target
from testbed.examples import examples
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service, read_raw_pod

REGISTRY = "default"
UIDS, NAMES, APPS = st.sampled_from(["s1", "s2", "s3"]), st.sampled_from(["cart", "till"]), st.sampled_from(["a", "b"])


def make_pod(app: str) -> Pod:
    return read_raw_pod(make_raw_pod(f"p-{app}", labels={"app": app}, ports={"grpc": 9000, "admin": 9001}))


PODS = {app: make_pod(app) for app in ("a", "b")}


def make_target(name: str, app: str, uid: str = "", **spec: Any) -> Target:
    metadata = {"uid": uid or f"{name}-{app}", "namespace": "shop", "name": name}
    return parse_target({"metadata": metadata, "spec": {"selector": {"app": app}, "ports": [{"port": 9000}], **spec}})


def make_service(uid: str, *, holds: bool = True, **spec: Any) -> GrpcService:
    """Parse a GrpcService to which all that it claims was granted."""
    raw = make_raw_service(uid, name=uid, **spec)
    if "serviceRef" in spec:
        del raw["spec"]["selector"]
    service = parse_service(raw)
    if not holds:
        return service
    assert service.claimed
    claims = dict.fromkeys(claims_of(service.claimed, [REGISTRY]), "2026-01-01T00:00:00.000000Z")
    return parse_service({**raw, "status": {"claims": write_claims(claims)}})


def wanted(cache: ClusterCache, app: str) -> dict[str, str]:
    """Return the GrpcServices by which a Pod is to have keys, with the port."""
    desired = cache.desired(f"p-{app}", REGISTRY)
    assert desired
    return {each.reference: each.endpoint.address for each in desired.wanted if each.endpoint}


def make_cache(*services: GrpcService) -> ClusterCache:
    cache = ClusterCache([REGISTRY])
    for pod in PODS.values():
        cache.note_pod(pod)
    for service in services:
        cache.note_service(service)
    return cache


class Following(RuleBasedStateMachine):
    """Notes things in any order, and has whom it concerns judged again, as the controller does."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = make_cache()
        self.services: dict[str, GrpcService] = {}
        self.targets: dict[str, Target] = {}
        self.is_listed = False

    def follow(self, uids: Any) -> None:
        for uid in uids:
            self.cache.note_service(self.cache.services[uid])

    def note(self, service: GrpcService) -> None:
        self.services[service.uid] = service
        self.cache.note_service(service)

    @rule(uid=UIDS, name=NAMES, enable=st.booleans(), port=st.sampled_from([None, "admin"]))
    def name_a_service(self, uid: str, name: str, port: str | None, *, enable: bool) -> None:
        self.note(make_service(uid, serviceRef={"name": name}, enable=enable, port=port))

    @rule(uid=UIDS, app=APPS)
    def select_pods(self, uid: str, app: str) -> None:
        self.note(make_service(uid, selector={"matchLabels": {"app": app}}))

    @rule(name=NAMES, app=APPS, ports=st.sampled_from([[{"port": 9000}], [{"port": 1}, {"port": 2}]]))
    def see_a_service(self, name: str, app: str, ports: Any) -> None:
        self.targets[name] = make_target(name, app, ports=ports)
        self.follow(self.cache.references.note(self.targets[name]))

    @rule(name=NAMES)
    def see_it_go(self, name: str) -> None:
        if target := self.targets.pop(name, None):
            self.follow(self.cache.references.forget(target))

    @rule()
    def list_all(self) -> None:
        self.is_listed = True
        self.follow(self.cache.references.take_list("", [each.uid for each in self.targets.values()]))

    @invariant()
    def it_is_as_if_all_had_been_known_from_the_start(self) -> None:
        fresh = make_cache()
        for target in self.targets.values():
            fresh.references.note(target)
        if self.is_listed:
            fresh.references.take_list("", [each.uid for each in self.targets.values()])
        for service in self.services.values():
            fresh.note_service(service)
        assert {uid: self.cache.verdict(uid) for uid in self.services} == {
            uid: fresh.verdict(uid) for uid in self.services
        }
        obeyed = {each.reference for each in self.services.values() if fresh.verdict(each.uid).accepted}
        for app in PODS:
            here, there = wanted(self.cache, app), wanted(fresh, app)
            assert {each: here[each] for each in here.keys() & obeyed} == there

    @invariant()
    def who_lacks_a_service_keeps_what_there_is(self) -> None:
        lacking = {uid for uid in self.services if not self.cache.verdict(uid).accepted}
        assert {uid for uid in lacking if not self.cache.keeps(uid)} == set()


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=examples(60), stateful_step_count=20, deadline=None)


def test_a_changed_selector_concerns_the_pods_of_both() -> None:
    cache = make_cache(make_service("s1", serviceRef={"name": "cart"}))
    assert cache.verdict("s1").reason is Reason.PENDING
    assert cache.references.note(make_target("cart", "a"))
    assert cache.note_service(cache.services["s1"]) >= {"s1", "p-a"}
    assert (wanted(cache, "a"), wanted(cache, "b")) == ({"shop/s1": "10.0.0.1:9000"}, {})
    assert cache.references.note(make_target("cart", "b"))
    assert cache.note_service(cache.services["s1"]) >= {"p-a", "p-b"}
    assert (wanted(cache, "a"), wanted(cache, "b")) == ({}, {"shop/s1": "10.0.0.1:9000"})


def test_a_service_that_goes_takes_nothing_along_and_new_pods_are_still_wanted() -> None:
    cache, target = make_cache(make_service("s1", serviceRef={"name": "cart"})), make_target("cart", "a")
    cache.references.note(target)
    cache.references.take_list("", ["cart-a"])
    cache.note_service(cache.services["s1"])
    assert cache.references.forget(target) == ("s1",)
    cache.note_service(cache.services["s1"])
    assert cache.verdict("s1").reason is Reason.SERVICE_NOT_FOUND
    assert wanted(cache, "a") == {"shop/s1": "10.0.0.1:9000"}
    cache.note_service(make_service("s1", serviceRef={"name": "cart"}, enable=False))
    assert wanted(cache, "a") == {}


def test_after_a_restart_all_that_stands_is_kept_whether_services_are_listed_or_not() -> None:
    cache = make_cache(make_service("s1", serviceRef={"name": "cart"}))
    for _ in range(2):
        desired = cache.desired("p-a", REGISTRY)
        assert desired
        assert desired.keep_references == {"shop/s1"}
        assert cache.written_as("s1")
        cache.note_service(cache.services["s1"])
        cache.references.take_list("shop", ())
    assert cache.verdict("s1").reason is Reason.SERVICE_NOT_FOUND


@pytest.mark.parametrize("is_ready", [True, False])
@pytest.mark.parametrize("publishes", [True, False])
def test_after_a_restart_publish_not_ready_decides_on_unready_pods_without_a_service(
    *, is_ready: bool, publishes: bool
) -> None:
    cache = ClusterCache([REGISTRY])
    cache.note_pod(read_raw_pod(make_raw_pod("p-a", labels={"app": "a"}, ready=is_ready)))
    for is_known_before in (not publishes, publishes):  # what was found out by another spec counts no more
        cache.note_service(make_service("s1", serviceRef={"name": "cart"}, publishNotReady=is_known_before))
        desired = cache.desired("p-a", REGISTRY)
        assert desired
        assert desired.keep_references == ({"shop/s1"} if is_ready or is_known_before else set())
    cache.note_pod(read_raw_pod(make_raw_pod("p-a", ready=is_ready, deletionTimestamp={"seconds": 1})))
    desired = cache.desired("p-a", REGISTRY)
    assert desired
    assert not desired.keep_references


def test_who_lacks_a_service_claims_nothing_new_and_holds_what_it_has() -> None:
    asks, holds = (make_service(uid, serviceRef={"name": "cart"}, holds=uid == "s2") for uid in ("s1", "s2"))
    cache = make_cache(asks, holds)
    assert cache.asking.next() is None
    late = parse_service(make_raw_service("late", name="s2", namespace="elsewhere"))
    cache.note_service(late)
    assert cache.verdict("late").reason is Reason.NAME_TAKEN
    assert cache.written_as("s1") == []
    assert cache.written_as("s2")


def test_a_heir_goes_on_with_the_claims_though_its_service_comes_later() -> None:
    cache = make_cache(make_service("old", serviceRef={"name": "cart"}))
    heir = parse_service({**make_raw_service("new", name="old"), "spec": {"serviceRef": {"name": "cart"}}})
    cache.note_service(heir)
    cache.forget_service("old")
    late = parse_service(make_raw_service("late", name="old", namespace="elsewhere"))
    cache.note_service(late)
    assert cache.verdict("late").reason is Reason.NAME_TAKEN
    cache.references.note(make_target("cart", "a"))
    cache.note_service(cache.services["new"])
    assert cache.asking.next() == "new"


def test_nothing_is_kept_of_what_is_gone() -> None:
    cache = make_cache(make_service("s1", serviceRef={"name": "cart"}))
    cache.forget_service("s1")
    assert not cache.references.pending
    assert not cache.references.note(make_target("cart", "a"))
    assert resolve(make_service("s1"), make_target("cart", "a")).spec == make_service("s1").spec
