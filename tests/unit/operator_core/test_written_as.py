"""Which forms of a GrpcService count for what is followed: never one that would reach what is not its own."""

from collections.abc import Callable
from typing import Any

import pytest

from grpc_etcd_operator.core.claims import claims_of, write_claims
from grpc_etcd_operator.core.cluster import World
from grpc_etcd_operator.core.services import GrpcService, parse_service
from tests.unit.operator_core.conftest import make_raw_service

REGISTRIES = ("default",)
Make = Callable[..., GrpcService]


def holding(raw: dict[str, Any]) -> GrpcService:
    """Parse a GrpcService to which all that it asks for was granted, as a restarted operator meets it."""
    spec = parse_service(raw).spec
    assert spec
    claims = write_claims(dict.fromkeys(claims_of(spec, REGISTRIES), "2026-01-01T00:00:00.000000Z"))
    return parse_service({**raw, "status": {"claims": claims}})


def test_what_is_obeyed_or_may_soon_be_counts(service: Make) -> None:
    world = World(REGISTRIES)
    world.note_service(service("s1"))
    assert world.verdict("s1").reason == "Pending"
    assert [each.name for each in world.written_as("s1")] == ["greeter"]
    granted = holding(make_raw_service("s1"))
    world.note_service(granted)
    assert world.written_as("s1") == [granted]


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"name": "c1", "prefix": "grpc-etcd/owner"}, "PrefixNotAllowed"),
        ({"name": "providers", "prefix": "jupiter/greeter"}, "PrefixNotAllowed"),
        ({"name": "greeter", "layouts": ["kratos"]}, "NameTaken"),
        ({"name": "kitex", "layouts": ["go-zero"]}, "NameReserved"),
    ],
)
def test_a_refused_wish_does_not_count_and_what_stands_meanwhile_does(wish: dict[str, Any], reason: str) -> None:
    world = World(REGISTRIES)
    world.note_service(holding(make_raw_service("s1")))
    world.note_service(parse_service(make_raw_service("evil", namespace="evil", **wish)))
    assert world.verdict("evil").reason == reason
    assert not world.written_as("evil")
    before = holding(make_raw_service("s2", namespace="evil", name="mine"))
    world.note_service(before)
    changed = make_raw_service("s2", namespace="evil", **wish)
    changed["metadata"]["generation"] = 2
    world.note_service(parse_service({**changed, "status": before.status}))
    assert world.verdict("s2").reason == reason
    assert world.written_as("s2") == [before]


def test_a_wish_that_is_refused_after_a_restart_counts_where_all_that_it_claims_is_its_own() -> None:
    world = World(REGISTRIES)
    mine = holding(make_raw_service("s1", prefix="elsewhere"))
    world.note_service(mine)
    assert world.verdict("s1").reason == "PrefixNotAllowed"
    assert world.written_as("s1") == [mine]


def test_a_name_that_becomes_free_counts_for_whom_it_is_next(service: Make) -> None:
    world = World(REGISTRIES)
    world.note_service(holding(make_raw_service("s1")))
    world.note_service(service("s2", namespace="evil", layouts=["kratos"]))
    assert not world.written_as("s2")
    assert "s2" in world.forget_service("s1")
    assert world.written_as("s2")
