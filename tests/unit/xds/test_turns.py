"""How the clusters of groups and addresses are called that leave the routes of a service and come back."""

import math

import pytest
from envoy.config.route.v3 import route_components_pb2 as route_pb2

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
    """Make what is sent of a service whose routes lead to these groups, and that has no other endpoints."""
    endpoints = [Endpoint(name="greeter", address=f"10.0.0.{n}:1", group=g) for n, g in enumerate(groups, start=1)]
    dialables = [Dialable(each, (Socket(each.address.partition(":")[0], 1),)) for each in endpoints]
    routes = [MethodRoute(groups=dict.fromkeys(groups, 1))]
    return make_service_resources(dialables, Policy(), routes, Here())


def test_a_part_that_comes_back_has_a_number_that_it_never_had() -> None:
    turns = Turns()
    seen = [turns.note(leading_to(*groups), 0.0).turns.get(CANARY) for groups in (["canary"], [], ["canary"]) * 4]
    numbers = [number for before, number in zip([None, *seen], seen, strict=False) if number != before]
    named = [number for number in numbers if number is not None]
    assert len(named) == len(set(named)) == 5, seen


def switched(turns: Turns, *groups: str, now: float, has: tuple[str, ...] = ("canary",)) -> ServiceResources:
    """Make what is sent of a service with endpoints in the groups that it `has`, after what was sent of it before."""
    dialables = [
        Dialable(Endpoint(name="greeter", address=f"10.0.0.{n}:1", group=each), (Socket(f"10.0.0.{n}", 1),))
        for n, each in enumerate(("", *has), start=1)
    ]
    routes = [MethodRoute(groups=dict.fromkeys(groups, 1))]
    return turns.note(make_service_resources(dialables, Policy(), routes, Here(), earlier=turns.known(now)), now)


def test_a_part_that_leaves_while_it_has_endpoints_is_held_and_comes_back_as_it_was() -> None:
    turns, name = Turns(), ResourceName(OWNER)
    on, off, again = (
        switched(turns, *groups, now=now) for now, groups in enumerate([["canary"], [], ["canary"]], start=1)
    )
    hosts = [route_pb2.VirtualHost.FromString(made.virtual_host(name, "*")) for made in (on, off, again)]
    led = [[route.route.cluster.rpartition("/default/")[2] for route in host.routes] for host in hosts]
    assert led == [
        ["greeter/group/canary", "greeter"],
        ["greeter", "greeter/group/canary"],
        ["greeter/group/canary", "greeter"],
    ]
    assert off.answer(resources.ASSIGNMENT, "x", name.select(*CANARY)) == on.answer(
        resources.ASSIGNMENT, "x", name.select(*CANARY)
    )
    assert not turns.has_departed


def test_a_part_without_endpoints_or_of_long_ago_is_not_held() -> None:
    turns = Turns()
    switched(turns, "canary", now=1)
    assert switched(turns, now=2).idle == (CANARY,)
    assert turns.due == 902
    assert switched(turns, now=901).idle == (CANARY,)
    assert (switched(turns, now=902).idle, turns.has_departed, turns.due) == ((), True, math.inf)
    assert switched(turns, "canary", now=903).turns[CANARY] == 1
    assert (switched(turns, now=904, has=()).idle, turns.has_departed) == ((), True)
    assert switched(turns, "canary", now=905).turns[CANARY] == 2


def test_what_is_held_is_what_left_last_and_takes_no_room_from_routes() -> None:
    turns = Turns()
    groups = [f"group-{number}" for number in range(40)]
    for now, group in enumerate(groups):
        held = switched(turns, group, now=now, has=tuple(groups))
    assert held.idle == tuple(Part(Selection.GROUP, group) for group in reversed(groups[-17:-1]))
    many = tuple(f"{number}-{'x' * 400}" for number in range(20))
    assert switched(turns, *many, now=41, has=(*groups, *many)).idle == ()


def test_a_part_that_stays_keeps_its_number_whatever_others_do() -> None:
    turns = Turns()
    seen = [
        turns.note(leading_to(*groups), 0.0).turns[CANARY]
        for groups in (["canary"], ["canary", "blue"], ["canary"]) * 3
    ]
    assert set(seen) == {0}


def test_routes_and_nothing_else_change_with_the_number() -> None:
    turns = Turns()
    first, _, second = (turns.note(leading_to(*groups), 0.0) for groups in (["canary"], [], ["canary"]))
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
