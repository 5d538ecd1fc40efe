"""What a Pod ought to have follows from its facts and its GrpcServices alone, in any order."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grpc_etcd.layouts.index import LAYOUT_NAMES
from grpc_etcd_operator.core.desired import MOST_BYTES, make_pod_desired, make_service_desired
from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.services import GrpcService

Services = Callable[..., GrpcService]
Pods = Callable[..., Pod]
specs = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["greeter", "other"]),
        "port": st.sampled_from(["grpc", "missing", 9100]),
        "weight": st.integers(0, 10_000),
        "enable": st.booleans(),
        "publishNotReady": st.booleans(),
        "layouts": st.lists(st.sampled_from(LAYOUT_NAMES), min_size=1, max_size=3, unique=True),
        "registries": st.lists(st.sampled_from(["default", "second"]), min_size=1, max_size=2, unique=True),
        "drain": st.sampled_from([{"mode": "Delete"}, {"mode": "Disable"}]),
    },
)


@pytest.mark.parametrize(
    ("phase", "metadata", "spec", "is_awaited"),
    [
        ("Running", {}, {}, True),
        ("Running", {"ip": ""}, {}, False),
        ("Pending", {}, {}, False),
        ("Succeeded", {}, {}, False),
        ("Running", {"deletionTimestamp": {"seconds": 1_767_225_609}}, {}, False),
        ("Running", {}, {"enable": False}, False),
        ("Running", {}, {"registries": ["second"]}, False),
    ],
)
def test_a_lease_is_needed_soon_for_who_runs_and_is_wanted(
    raw_pod: Callable[..., dict[str, Any]],
    read_pod: Pods,
    service: Services,
    *,
    phase: str,
    metadata: dict[str, Any],
    spec: dict[str, Any],
    is_awaited: bool,
) -> None:
    raw = raw_pod(ready=False, **metadata)
    raw["status"]["phase"] = phase
    desired = make_pod_desired(read_pod(raw), [service(**spec)], "default")
    assert (desired.is_awaited, desired.wanted) == (is_awaited, ())


@given(raw=st.lists(specs, max_size=4), ready=st.booleans(), chance=st.randoms(use_true_random=False))
def test_the_order_of_services_decides_nothing_and_no_key_comes_twice(
    pod: Pods, service: Services, *, raw: list[dict[str, Any]], ready: bool, chance: random.Random
) -> None:
    services = [service(f"s{number}", created="2026-01-01T00:00:00Z", **spec) for number, spec in enumerate(raw)]
    one = make_pod_desired(pod(ready=ready), services, "default")
    shuffled = list(services)
    chance.shuffle(shuffled)
    assert make_pod_desired(pod(ready=ready), shuffled, "default") == one
    assert len({wanted.key for wanted in one.wanted}) == len(one.wanted)


@example(raw={"weight": 0, "layouts": ["jupiter", "kitex"], "registries": ["default"]}, ready=True)
@given(raw=specs, ready=st.booleans())
def test_keys_are_wanted_exactly_of_pods_that_serve(
    pod: Pods, service: Services, *, raw: dict[str, Any], ready: bool
) -> None:
    asks = service(**raw)
    assert asks.spec
    desired = make_pod_desired(pod(ready=ready), [asks], "default")
    created = [wanted for wanted in desired.wanted if not wanted.only_if_held]
    serves = ready or raw.get("publishNotReady", False)
    expected = serves and asks.spec.enable and raw.get("port") != "missing" and "default" in asks.spec.registries
    wanted_in = {layout.name for layout in asks.spec.layouts["default"]} if expected else set()
    refusing = {"kitex"} & wanted_in if raw.get("weight") == 0 else set()  # its readers take a weight of 0 for 10
    assert {wanted.layout.name for wanted in created if wanted.layout} == wanted_in - refusing
    assert [fault.reason for fault in desired.faults if fault.reason == "Unwritable"] == ["Unwritable"] * len(refusing)
    for wanted in created:
        assert wanted.layout
        assert wanted.endpoint
        decoded = wanted.layout.decode(asks.spec.registry_name, wanted.key, wanted.value)
        assert getattr(decoded, "address", "") == wanted.endpoint.address  # a key that readers cannot read is a bug
    assert all(wanted.endpoint and not wanted.endpoint.enable for wanted in desired.wanted if wanted.only_if_held)


def test_addresses_of_ipv6_are_bracketed(pod: Pods, service: Services) -> None:
    (wanted,) = make_pod_desired(pod(ip="fd00::7"), [service()], "default").wanted
    assert json.loads(wanted.value)["address"] == "[fd00::7]:9000"
    assert wanted.key.endswith(b"grpc://[fd00::7]:9000")


@pytest.mark.parametrize(
    ("annotation", "weight", "faults"),
    [
        ("77", 77, []),
        ("0", 0, []),
        ("10000", 10_000, []),
        ("10001", 5, ["BadWeight"]),
        ("-1", 5, ["BadWeight"]),
        ("heavy", 5, ["BadWeight"]),
        ("", 5, ["BadWeight"]),
    ],
)
def test_the_annotation_overrides_the_weight_and_a_bad_one_is_reported(
    pod: Pods, service: Services, annotation: str, weight: int, faults: list[str]
) -> None:
    annotated = pod(annotations={"grpc-etcd.dev/weight": annotation})
    desired = make_pod_desired(annotated, [service(weight=5)], "default")
    assert json.loads(desired.wanted[0].value)["weight"] == weight
    assert [fault.reason for fault in desired.faults] == faults


def test_labels_become_metadata_and_topology_becomes_zone_and_region(pod: Pods, service: Services) -> None:
    topology = {"topology.kubernetes.io/zone": "z1", "topology.kubernetes.io/region": "r1"}
    labelled = pod(labels={"app": "greeter", "version": "v2", **topology})
    asks = service(metadata={"team": "shop"}, metadataFromLabels=["version", "absent"])
    value = json.loads(make_pod_desired(labelled, [asks], "default").wanted[0].value)
    assert value["metadata"] == {"jupiterVersion": "0.2.0", "team": "shop", "version": "v2"}
    assert (value["zone"], value["region"]) == ("z1", "r1")
    said = json.loads(make_pod_desired(labelled, [service(zone="mine")], "default").wanted[0].value)
    assert (said["zone"], said["region"]) == ("mine", "r1")


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ({"port": "absent"}, "set spec.port, perhaps to grpc"),
        ({"port": "grpc", "metricsPort": "absent"}, "set spec.metricsPort"),
    ],
)
def test_a_port_that_is_not_there_is_told_with_the_field_that_names_it(
    pod: Pods, service: Services, spec: dict[str, Any], remedy: str
) -> None:
    """Who sets `spec.port` because `metricsPort` is wrong sends calls to another port."""
    faults = make_pod_desired(pod(), [service(**spec)], "default").faults
    assert [(fault.reason, fault.message.rpartition("; ")[2]) for fault in faults] == [("PortNotFound", remedy)]


@pytest.mark.parametrize(
    ("more", "publishes", "is_kept"),
    [
        ({}, False, True),
        ({"ready": False}, False, False),
        ({"ready": False}, True, True),
        ({"deletionTimestamp": {"seconds": 1}}, True, False),
    ],
)
def test_a_port_that_is_not_there_takes_no_key_of_a_pod_that_counts_as_ready(
    pod: Pods, service: Services, more: dict[str, Any], *, publishes: bool, is_kept: bool
) -> None:
    desired = make_pod_desired(pod(**more), [service(port="absent", publishNotReady=publishes)], "default")
    assert bool(desired.keep_references) == is_kept


def test_of_two_services_that_want_one_key_the_older_ones_value_stands(pod: Pods, service: Services) -> None:
    older = service("s2", created="2026-01-01T00:00:00Z", weight=1)
    younger = service("s1", created="2026-01-01T00:00:01Z", weight=2)
    desired = make_pod_desired(pod(), [younger, older], "default")
    assert [json.loads(wanted.value)["weight"] for wanted in desired.wanted] == [1]
    assert [(fault.source, fault.reason) for fault in desired.faults] == [("s1", "KeyShared")]
    assert desired.faults[0].message.endswith("give one of the two another spec.name, or delete one")


def test_of_two_layouts_that_write_one_key_the_first_ones_value_stands_and_no_other_service_is_blamed(
    pod: Pods, service: Services
) -> None:
    """With a prefix, kitex and etcd-naming write under the same keys."""
    desired = make_pod_desired(pod(), [service(layouts=["kitex", "etcd-naming"], prefix="/apps")], "default")
    assert [wanted.layout.name for wanted in desired.wanted if wanted.layout] == ["kitex"]
    (fault,) = desired.faults
    assert fault.reason == "KeyShared"
    assert "the layouts kitex and etcd-naming both write /apps/greeter/" in fault.message
    assert "older GrpcService" not in fault.message


def test_a_services_own_records_are_wanted_only_while_it_is_accepted(service: Services) -> None:
    routes = [{"id": "canary", "method": "/a.B/C", "groups": {"blue": 1}}]
    asks = service(policy={"timeout": "5s"}, routes=routes)
    keys = {wanted.key for wanted in make_service_desired(asks, "default", accepted=True).wanted}
    assert keys == {b"/grpc-etcd/policy/jupiter/greeter", b"/jupiter/greeter/configurators/grpc:///routes/canary"}
    assert make_service_desired(asks, "default", accepted=False).wanted == ()
    assert make_service_desired(asks, "second", accepted=True).wanted == ()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_every_key_stands_under_the_prefix_that_is_followed_for_its_layout(
    layout: str, scheme: str, pod: Pods, service: Services
) -> None:
    asking = service(layouts=[layout], scheme=scheme)
    assert asking.spec
    wanted = make_pod_desired(pod(), [asking], "default").wanted
    (made,) = asking.spec.layouts["default"]
    assert wanted
    assert all(each.key.startswith(made.prefix("greeter")) for each in wanted)


def test_a_pods_records_stay_bounded_however_much_its_services_ask_for(pod: Pods, service: Services) -> None:
    large = {"layouts": list(LAYOUT_NAMES), "metadata": {f"key-{number}": "v" * 1024 for number in range(64)}}
    older = [service(f"a{number:03}", name=f"a{number:03}", **large) for number in range(300)]
    deregistered = service("b", name="b", enable=False)
    desired = make_pod_desired(pod(), [*older, deregistered], "default")
    assert sum(len(each.key) + len(each.value) for each in desired.wanted) <= MOST_BYTES
    assert {each.source for each in desired.wanted} == {"a000", "a001"}
    assert [fault.source for fault in desired.faults] == [each.uid for each in older[2:]]
    assert {fault.reason for fault in desired.faults} == {"Unwritable"}
    assert deregistered.reference not in desired.keep_references
    assert older[-1].reference in desired.keep_references
