"""How the clusters of groups and addresses are called that leave the routes of a service and come back."""

import pytest

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Policy
from grpc_etcd.xds import resources
from grpc_etcd.xds.localities import Dialable, Here
from grpc_etcd.xds.names import ResourceName, Selection, ServiceName, parse_resource_name
from grpc_etcd.xds.resources import Socket
from grpc_etcd.xds.service import MethodRoute, Part, ServiceResources, Turns, make_service_resources

OWNER = ServiceName("default", "greeter")
CANARY = Part(Selection.GROUP, "canary")


def leading_to(*groups: str) -> ServiceResources:
    """Make what is sent of a service whose routes lead to these groups."""
    endpoints = [Endpoint(name="greeter", address=f"10.0.0.{n}:1", group=g) for n, g in enumerate(groups, start=1)]
    dialables = [Dialable(each, (Socket(each.address.partition(":")[0], 1),)) for each in endpoints]
    routes = [MethodRoute(groups=dict.fromkeys(groups, 1))]
    return make_service_resources(dialables, Policy(), routes, Here())


def test_a_part_that_comes_back_has_a_number_that_it_never_had() -> None:
    turns = Turns()
    seen = [turns.note(leading_to(*groups)).turns.get(CANARY) for groups in (["canary"], [], ["canary"]) * 4]
    numbers = [number for before, number in zip([None, *seen], seen, strict=False) if number != before]
    named = [number for number in numbers if number is not None]
    assert len(named) == len(set(named)) == 5, seen


def test_a_part_that_stays_keeps_its_number_whatever_others_do() -> None:
    turns = Turns()
    seen = [
        turns.note(leading_to(*groups)).turns[CANARY] for groups in (["canary"], ["canary", "blue"], ["canary"]) * 3
    ]
    assert set(seen) == {0}


def test_routes_and_nothing_else_change_with_the_number() -> None:
    turns = Turns()
    first, _, second = (turns.note(leading_to(*groups)) for groups in (["canary"], [], ["canary"]))
    name = ResourceName(OWNER)
    assert first.virtual_host(name, "*") != second.virtual_host(name, "*")
    assert b"Cluster/default/greeter/group/canary/1" in second.virtual_host(name, "*")
    asked = name.select(*CANARY, 1)
    assert second.answer(resources.ASSIGNMENT, "x", asked) == first.answer(
        resources.ASSIGNMENT, "x", name.select(*CANARY)
    )


@pytest.mark.parametrize("turn", [0, 1, 10**17])
@pytest.mark.parametrize("federated", [True, False])
def test_a_name_with_a_number_is_read_as_it_was_written(turn: int, *, federated: bool) -> None:
    name = ResourceName(OWNER, Selection.GROUP, "a/b", federated, turn)
    assert parse_resource_name(name.format(resources.CLUSTER), resources.CLUSTER) == name


@pytest.mark.parametrize("tail", ["0", "01", "x", "1/1", "-1", "1" * 30])
def test_what_is_no_number_is_no_name_of_ours(tail: str) -> None:
    assert parse_resource_name(f"default/greeter/group/canary/{tail}", resources.CLUSTER) is None
