"""A command that changes a selector selects the Pods of the same service, or there is none."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.inspect.cluster import ClusterFacts, Condition, ContainerPort, PodFacts, ServiceFacts
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.conditions import condition_findings
from grpc_etcd.inspect.findings import Finding
from grpc_etcd.inspect.nearness import count_edits, is_misspelling
from grpc_etcd.inspect.service_checks import find_service_faults

WORDS = st.text("ab1", max_size=6)


def pod(name: str = "p", /, *ports: ContainerPort, **labels: str) -> PodFacts:
    return PodFacts(namespace="shop", name=name, labels=labels, ports=ports or (ContainerPort("grpc", 1),), ready=True)


def service(name: str, port: str | int | None = None, /, **labels: str) -> ServiceFacts:
    return ServiceFacts(
        namespace="shop", name=name, observed=0, registry_name=name, selector={"matchLabels": labels}, port=port
    )


def find(one: ServiceFacts, *pods: PodFacts, others: tuple[ServiceFacts, ...] = ()) -> Finding:
    (found,) = find_service_faults(ClusterFacts(namespace="shop", services=(one,), others=others, pods=pods))
    return found


@pytest.mark.parametrize(
    ("one", "there", "others"),
    [
        (service("adservice", app="adservice"), pod(app="emailservice"), ()),
        (service("card", app="card"), pod(app="cart"), ()),
        (service("pay", app="order-1"), pod(app="order-2"), ()),
        (service("pay", app="order"), pod("orders-5f-x", app="orders"), ()),
        (service("pay", app="order"), pod(app="orders"), (service("orders", app="orders"),)),
        (service("pay", kind="backend"), pod(tier="backend"), ()),
        (service("orders", app="order"), pod(app="orders"), (service("other", app="orders"),)),
    ],
    ids=["not rolled out", "near, but its own name", "numbered", "a Deployment's", "another's", "any value", "shared"],
)
def test_pods_that_are_not_there_yet_are_no_misspelling(
    one: ServiceFacts, there: PodFacts, others: tuple[ServiceFacts, ...]
) -> None:
    found = find(one, there, others=others)
    assert (found.code, found.remedy) == (Code.NO_PODS, "kubectl -n shop get pods --show-labels")
    assert "yet" in found.problem
    assert next(f"{key}={value}" for key, value in there.labels.items()) in found.problem


@pytest.mark.parametrize(
    ("one", "there", "change"),
    [
        (service("orders", app="ordres"), pod("orders-5f-x", app="orders"), '{"app": "orders"}'),
        (service("greeter", track="canry"), pod(track="canary"), '{"track": "canary"}'),
        (service("greeter", nme="backend"), pod(name="backend"), '{"name": "backend", "nme": null}'),
        (service("greeter", name="greeter"), pod(app="greeter"), '{"app": "greeter", "name": null}'),
    ],
)
def test_a_misspelling_has_its_command(one: ServiceFacts, there: PodFacts, change: str) -> None:
    assert change in find(one, there).remedy


@pytest.mark.parametrize(
    ("ports", "wanted", "choice"),
    [
        ([ContainerPort("metrics", 9090)], "grpc", None),
        ([ContainerPort("http", 80), ContainerPort("metrics", 9090)], 50051, None),
        ([ContainerPort("metrics", 9090), ContainerPort("main-grpc", 7)], "grpc", "main-grpc"),
        ([ContainerPort("web", 80)], "wbe", "web"),
        ([ContainerPort("", 7)], "grpc", 7),
    ],
)
def test_a_port_that_may_be_that_of_metrics_is_not_chosen(
    ports: list[ContainerPort], wanted: Any, choice: str | int | None
) -> None:
    found = find(service("a", wanted, app="a"), pod("p", *ports, app="a"))
    assert ("patch" in found.remedy) == (choice is not None)
    if choice is not None:
        assert '"port": ' + (f'"{choice}"' if isinstance(choice, str) else str(choice)) in found.remedy


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ("production, staging", '"registries": ["staging"]'),
        ("production, backup", "edit grpcservice greeter"),
        ("production", '"registries": ["production"]'),
    ],
)
def test_a_registry_is_chosen_where_one_can_be_meant(known: str, words: str) -> None:
    said = Condition("False", "UnknownRegistry", f"this operator knows {known}; correct it")
    one = ServiceFacts(
        namespace="shop",
        name="greeter",
        registry_name="greeter",
        observed=0,
        registries=("stagin",),
        conditions={"Accepted": said},
    )
    (found,) = condition_findings(one, ())
    assert words in found.remedy


@given(WORDS, WORDS)
def test_edits_are_counted_alike_from_both_ends(one: str, other: str) -> None:
    assert count_edits(one, other) == count_edits(other, one) <= max(len(one), len(other))
    assert (count_edits(one, other) == 0) == (one == other)
    assert not is_misspelling(one, one)
    assert is_misspelling(one, other) == is_misspelling(other, one)
