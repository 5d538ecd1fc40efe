"""A registry name belongs to the namespace of the oldest GrpcService that uses it, whatever the order of events."""

import random
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd_operator.core.claims import claims_of, find_taken
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.core.world import World

Make = Callable[..., GrpcService]
SECONDS = [f"2026-01-01T00:00:0{second}Z" for second in range(3)]
drawn = st.lists(
    st.tuples(st.sampled_from(["shop", "bank", "lab"]), st.sampled_from(["a", "b"]), st.sampled_from(SECONDS)),
    min_size=1,
    max_size=8,
)


def make_all(service: Make, drawn_services: list[tuple[str, str, str]]) -> list[GrpcService]:
    raw = {f"u{number}": each for number, each in enumerate(drawn_services)}
    return [parse(service, uid, *each) for uid, each in raw.items()]


def parse(service: Make, uid: str, namespace: str, registry_name: str, created: str) -> GrpcService:
    made = service(uid, namespace=namespace, created=created)
    assert made.spec
    return replace(made, name=uid, spec=replace(made.spec, registry_name=registry_name))


def accepted(services: list[GrpcService], *, shared_names: bool = False) -> set[str]:
    world = World(["default"], shared_names=shared_names)
    for each in services:
        world.note_service(each)
    return {each.uid for each in services if world.verdict(each.uid).accepted}


@given(drawn, st.randoms(use_true_random=False))
def test_the_oldest_decides_and_the_order_of_events_does_not(
    service: Make, drawn_services: list[tuple[str, str, str]], chance: random.Random
) -> None:
    services = make_all(service, drawn_services)
    by_name: dict[str, list[GrpcService]] = {}
    for each in services:
        assert each.spec
        by_name.setdefault(each.spec.registry_name, []).append(each)
    oldest = {name: min(sharers, key=lambda each: each.age_order).namespace for name, sharers in by_name.items()}
    wanted = {each.uid for each in services if each.spec and each.namespace == oldest[each.spec.registry_name]}
    assert accepted(services) == wanted
    shuffled = list(services)
    chance.shuffle(shuffled)
    assert accepted(shuffled) == wanted


@given(drawn)
def test_a_name_is_free_again_when_its_holder_is_gone(
    service: Make, drawn_services: list[tuple[str, str, str]]
) -> None:
    services = make_all(service, drawn_services)
    world = World(["default"])
    for each in services:
        world.note_service(each)
    gone, left = services[0], services[1:]
    world.forget_service(gone.uid)
    assert {each.uid for each in left if world.verdict(each.uid).accepted} == accepted(left)


def test_an_admin_may_allow_shared_names(service: Make) -> None:
    services = make_all(service, [("shop", "a", SECONDS[0]), ("bank", "a", SECONDS[1])])
    assert accepted(services) == {"u0"}
    assert accepted(services, shared_names=True) == {"u0", "u1"}


def test_the_one_who_waits_is_told_whose_the_name_is(service: Make) -> None:
    world = World(["default"])
    world.note_service(service("u0", namespace="shop", created=SECONDS[0]))
    world.note_service(service("u1", namespace="bank", created=SECONDS[1]))
    verdict = world.verdict("u1")
    assert verdict.reason == "NameTaken"
    assert "shop/greeter" in verdict.message
    assert "spec.name" in verdict.message


def test_other_prefixes_layouts_and_registries_are_other_claims(service: Make) -> None:
    elder = service("u0", namespace="shop", created=SECONDS[0])
    for other in (
        service("u1", namespace="bank", created=SECONDS[1], prefix="other"),
        service("u2", namespace="bank", created=SECONDS[1], registries=["second"]),
        service("u3", namespace="bank", created=SECONDS[1], layouts=["go-zero"]),
    ):
        assert find_taken(other, [elder, other]) is None
        assert not set(claims_of(other)) & set(claims_of(elder))


def test_a_service_without_a_usable_spec_claims_nothing(service: Make) -> None:
    assert claims_of(service(selector={})) == ()
