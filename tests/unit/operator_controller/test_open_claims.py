"""A new leader waits for the claims that were asked for when all became known, and for no later ones."""

import time
from typing import Any

from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.event_handlers import SERVICES, Reconciler
from grpc_etcd_operator.core.cluster import World
from grpc_etcd_operator.telemetry.metrics import Timings
from tests.unit.operator_core.conftest import make_raw_service


def raw_service(uid: str, name: str, generation: int) -> dict[str, Any]:
    raw = make_raw_service(uid, name=name)
    raw["metadata"]["generation"] = generation
    return raw


def test_claims_that_are_asked_for_later_are_not_waited_for() -> None:
    reconciler = Reconciler(World(["default"]), {"default": None}, Timings(CollectorRegistry()))
    reconciler.grants_in_memory = True
    reconciler.mark_complete(SERVICES)
    reconciler.note_service("ADDED", make_raw_service("calm"))
    reconciler.grants_in_memory = False
    reconciler.note_service("ADDED", raw_service("early", "early", 1))
    moment = time.monotonic()
    reconciler.note_service("ADDED", raw_service("late", "late", 1))
    assert reconciler.has_open_claims(moment)
    reconciler.note_service("MODIFIED", raw_service("early", "renamed", 2))
    assert not reconciler.has_open_claims(moment)
    assert reconciler.has_open_claims(time.monotonic())
