"""GrpcServices that take each other's place, told in any order."""

from typing import Any

from prometheus_client import CollectorRegistry

from grpc_etcd_operator.core.world import World
from grpc_etcd_operator.metrics import Timings
from grpc_etcd_operator.reconciling import Reconciler


def raw_service(uid: str) -> dict[str, Any]:
    metadata = {"uid": uid, "namespace": "shop", "name": "greeter", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": metadata, "spec": {"selector": {"matchLabels": {"app": "greeter"}}}}


def test_late_news_of_a_replaced_service_do_not_remove_the_one_in_its_place() -> None:
    registries = {"default": None}
    reconciler = Reconciler(World(registries), registries, Timings(CollectorRegistry()))
    reconciler.note_service("ADDED", raw_service("old"))
    reconciler.note_service("ADDED", raw_service("new"))
    assert set(reconciler.world.services) == {"new"}
    reconciler.note_service("MODIFIED", raw_service("old"))
    assert set(reconciler.world.services) == {"new"}
