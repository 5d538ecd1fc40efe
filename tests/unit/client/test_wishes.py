"""Wishes in code are checked where they are made: never accepted and then the reason for failed calls."""

# mypy: disable-error-code="arg-type, dict-item"
# Wrong types are what is tested here.

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd import (
    Balancing,
    Endpoint,
    LoadBalancing,
    LocalityPreference,
    MethodRoute,
    OutlierDetection,
    Policy,
    Retry,
    RetryOn,
    ZonePreference,
)
from grpc_etcd.client.configuration import check_wishes
from grpc_etcd.registry.policy import parse_policy, read_policy, write_policy
from grpc_etcd.testing import MemoryRegistry
from grpc_etcd.xds import resources
from grpc_etcd.xds.localities import Here
from grpc_etcd.xds.names import ResourceName, ServiceName
from grpc_etcd.xds.service import make_service_resources
from testbed.conditions import wait_until

POLICY_PARTS: dict[type, tuple[str, dict[str, str]]] = {
    Retry: (
        "retry",
        {
            "attempts": "attempts",
            "retry_on": "retryOn",
            "base_interval_seconds": "baseInterval",
            "max_interval_seconds": "maxInterval",
        },
    ),
    OutlierDetection: (
        "outlierDetection",
        {
            "interval_seconds": "interval",
            "base_ejection_seconds": "baseEjectionTime",
            "max_ejection_seconds": "maxEjectionTime",
            "max_ejection_percent": "maxEjectionPercent",
            "failure_percentage": "failurePercentage",
            "minimum_hosts": "minimumHosts",
            "request_volume": "requestVolume",
        },
    ),
}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Retry(attempts=0), ValueError, "Retry.attempts: 0 is not between 1 and 5"),
        (lambda: Retry(attempts=10), ValueError, "Retry.attempts: 10 is not between 1 and 5"),
        (lambda: Retry(attempts=True), TypeError, "Retry.attempts: True is not a whole number"),
        (lambda: Retry(attempts=2.0), TypeError, "Retry.attempts"),
        (lambda: Retry(retry_on=()), ValueError, "Retry.retry_on: it is empty"),
        (lambda: Retry(retry_on=("Nope",)), ValueError, "Retry.retry_on: 'Nope' is not one of Unavailable"),
        (lambda: Retry(retry_on=(grpc.StatusCode.OK,)), ValueError, "Retry.retry_on: StatusCode.OK is not one of"),
        (lambda: Retry(retry_on=3), TypeError, "Retry.retry_on"),
        (lambda: Retry(base_interval_seconds=0), ValueError, "Retry.base_interval_seconds: 0 s is not between 0.01"),
        (lambda: Retry(max_interval_seconds="1s"), TypeError, "Retry.max_interval_seconds: '1s' is not a number"),
        (lambda: OutlierDetection(failure_percentage=150), ValueError, "OutlierDetection.failure_percentage: 150"),
        (lambda: OutlierDetection(interval_seconds=math.nan), ValueError, "OutlierDetection.interval_seconds"),
        (lambda: LoadBalancing(type="RoundRobbin"), ValueError, "LoadBalancing.type: 'RoundRobbin' is not one of"),
        (lambda: LoadBalancing(type=None), TypeError, "LoadBalancing.type"),
        (lambda: LoadBalancing(hash_header="x"), ValueError, "LoadBalancing.hash_header: only RingHash hashes"),
        (lambda: LoadBalancing(type=Balancing.RING_HASH, hash_header="x-bin"), ValueError, "binary metadata key"),
        (lambda: LoadBalancing(type=Balancing.RING_HASH, hash_header="a b"), ValueError, "not a metadata key"),
        (lambda: LocalityPreference(mode="Near"), ValueError, "LocalityPreference.mode: 'Near' is not one of"),
        (lambda: Policy(load_balancing=Balancing.ROUND_ROBIN), TypeError, "Policy.load_balancing"),
        (lambda: Policy(retry=3), TypeError, "Policy.retry: 3 is not of type Retry"),
        (lambda: Policy(outlier_detection=True), TypeError, "Policy.outlier_detection"),
        (lambda: Policy(locality_preference=ZonePreference.PREFER_ZONE), TypeError, "Policy.locality_preference"),
        (lambda: Policy(timeout_seconds=0), ValueError, "Policy.timeout_seconds: 0 s is not between"),
        (lambda: Policy(timeout_seconds=-1), ValueError, "Policy.timeout_seconds"),
        (lambda: Policy(timeout_seconds=-math.inf), ValueError, "Policy.timeout_seconds"),
        (lambda: Policy(timeout_seconds="2s"), TypeError, "Policy.timeout_seconds"),
        (lambda: Policy(subset=0), ValueError, "Policy.subset: 0 is not between 1 and"),
        (lambda: MethodRoute(groups=["canary"]), TypeError, "MethodRoute.groups"),
        (lambda: Endpoint(name="a", address="b"), ValueError, "the address 'b' is neither host:port"),
        (lambda: Endpoint(name="a", address="b:70000"), ValueError, "the address 'b:70000'"),
        (lambda: Endpoint(name="a/b", address="b:1"), ValueError, "the name 'a/b' contains '/'"),
        (lambda: Endpoint(name="a", address="b:1", weight=-1), ValueError, "the endpoint's weight is -1"),
        (lambda: Endpoint(name="a", address="b:1", weight=math.nan), ValueError, "the endpoint's weight is nan"),
        (lambda: Endpoint(name="a", address="b:1", weight="7"), TypeError, "the endpoint's weight is '7'"),
        (lambda: Endpoint(name="a", address="b:1", metadata={"a": 1}), TypeError, "metadata has 'a': 1"),
        (lambda: Endpoint(name="a", address="b:1", metadata=["a"]), TypeError, "not a mapping of strings"),
        (lambda: Endpoint(name="a", address="b:1", zone=None), TypeError, "the endpoint's zone is None"),
        (lambda: Endpoint(name="a", address="b:1", enable="no"), TypeError, "the endpoint's enable is 'no'"),
        (lambda: Endpoint(name="a", address="b:1", kind=1), TypeError, "the endpoint's kind is 1"),
    ],
)
def test_what_can_never_work_is_refused_where_it_is_made(
    make: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as refusal:
        make()
    assert words in str(refusal.value)


def test_names_and_other_enums_are_taken() -> None:
    """What one has at hand: gRPC's own codes, the names that a GrpcService has, one value without a tuple."""
    loose: Any = Retry
    for wish in (grpc.StatusCode.UNAVAILABLE, "Unavailable", "UNAVAILABLE", [RetryOn.UNAVAILABLE], RetryOn.UNAVAILABLE):
        assert loose(retry_on=wish).retry_on == (RetryOn.UNAVAILABLE,)
    balancing: Any = LoadBalancing
    made = balancing(type="RingHash", hash_header="X-User")
    assert made.type is Balancing.RING_HASH
    assert made.hash_header == "x-user"
    assert balancing(type="ROUND_ROBIN").type is Balancing.ROUND_ROBIN
    mode: Any = "PreferZone"
    assert LocalityPreference(mode=mode).mode is ZonePreference.PREFER_ZONE


def test_a_part_of_the_registrys_policy_can_be_switched_off() -> None:
    registrys = Policy(retry=Retry(), outlier_detection=OutlierDetection(), timeout_seconds=1)
    mine = Policy(retry=Retry.OFF, outlier_detection=OutlierDetection.OFF, timeout_seconds=math.inf).over(registrys)
    name, plain = ResourceName(ServiceName("r", "greeter")), Policy()
    written = [make_service_resources((), each, (), Here()).virtual_host(name, "greeter") for each in (mine, plain)]
    assert written[0] == written[1]
    assert resources.cluster("c", "a", mine, weighted=False) == resources.cluster("c", "a", plain, weighted=False)
    assert mine.timeout_seconds == math.inf
    assert read_policy(write_policy(mine)).faults == ()


@given(st.data())
def test_code_and_grpcservices_have_the_same_bounds(data: st.DataObject) -> None:
    """Whole numbers and seconds that one of the two refuses, the other refuses as well."""
    part = data.draw(st.sampled_from(sorted(POLICY_PARTS, key=lambda each: each.__name__)))
    name, fields = POLICY_PARTS[part]
    attribute = data.draw(st.sampled_from(sorted(set(fields) - {"retry_on"})))
    value = data.draw(st.integers(-2, 200_000) | st.sampled_from([1_000_000, 1_000_001]))
    raw: object = f"{value}s" if attribute.endswith("_seconds") else value
    faults = parse_policy({name: {fields[attribute]: raw}}).faults
    try:
        part(**{attribute: value})
    except ValueError:
        assert faults
    else:
        assert not faults


@pytest.mark.parametrize(
    ("policy", "routes", "error", "words"),
    [
        (3, None, TypeError, "policy: 3 is not a Policy"),
        (None, ["canary"], TypeError, "routes: 'canary' is not a MethodRoute"),
        (None, [MethodRoute(method="Get", groups={"a": 1})], ValueError, "'Get' does not begin with '/'"),
        (None, [MethodRoute(groups={"": -1})], ValueError, "the weight -1 of '' is below 0"),
        (None, [MethodRoute(groups={"a": 0.5})], TypeError, "MethodRoute.groups: 'a': 0.5"),
        (None, [MethodRoute(groups={"a": 2**31, "b": 2**31})], ValueError, "add up to 1 to 4294967295"),
        (None, [MethodRoute()], ValueError, "add up to 1"),
        (None, [MethodRoute(addresses={"nowhere": 1})], ValueError, "the address 'nowhere'"),
    ],
)
def test_configure_refuses_what_no_channel_can_be_told(
    policy: object, routes: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as refusal:
        check_wishes(policy, routes, None)
    assert words in str(refusal.value)


def test_a_route_is_what_it_was_when_it_was_made() -> None:
    groups: Any = {"canary": 1}
    route = MethodRoute(groups=groups)
    groups["canary"] = -1
    assert route == MethodRoute(groups={"canary": 1})


def test_what_can_be_called() -> None:
    fine = Endpoint(name="a", address="b:1")
    assert fine.is_callable
    for wrong in ({"enable": False}, {"healthy": False}, {"weight": 0}):
        assert not Endpoint(name="a", address="b:1", **wrong).is_callable


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout_seconds": "5"}, TypeError),
        ({"timeout_seconds": True}, TypeError),
        ({"timeout_seconds": math.nan}, ValueError),
        ({"at_least": "2"}, TypeError),
        ({"at_least": 1.5}, TypeError),
    ],
)
async def test_a_wait_that_is_none_is_refused_with_the_name_of_the_argument(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with MemoryRegistry() as registry:
        registry.set_endpoints("greeter", "10.0.0.1:1")
        with pytest.raises(error, match=f"{next(iter(options))}: "):
            registry.wait_for_endpoints("greeter", **options)
        with pytest.raises(error, match=f"{next(iter(options))}: "):
            await registry.aio.wait_for_endpoints("greeter", **options)


def test_a_wait_of_infinity_waits_for_ever() -> None:
    with MemoryRegistry() as registry, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(registry.wait_for_endpoints, "greeter", math.inf)
        wait_until(registry.stats, "the service to be followed")
        registry.set_endpoints("greeter", "10.0.0.1:1")
        assert len(waiting.result(60).endpoints) == 1


def test_a_second_configure_replaces_what_it_is_given_and_keeps_the_rest() -> None:
    with MemoryRegistry() as registry:
        routes = (MethodRoute(groups={"canary": 1}),)
        registry.configure("greeter", Policy(timeout_seconds=2, subset=3), routes=routes)
        registry.configure("greeter", Policy(subset=5), strict_removal=True)
        wishes = registry.follow("greeter").wishes
        assert (wishes.policy, wishes.routes, wishes.strict_removal) == (Policy(subset=5), routes, True)
        registry.configure("greeter", Policy(), routes=[], strict_removal=False)
        wishes = registry.follow("greeter").wishes
        assert (wishes.policy, wishes.routes, wishes.strict_removal) == (Policy(), (), False)
