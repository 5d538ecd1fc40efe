"""Claims whose writes nobody answers: they are written again, but by nobody who may grant no longer."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.claim_granter import Granter
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.core.cluster import ASKING, ClusterCache
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.conditions import until
from tests.unit.operator_core.conftest import make_raw_service


class ApiServer(Client):
    """An API server that holds one GrpcService, and loses the first write to it."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw, self.is_lost, self.reads = raw, False, 0

    async def patch_service_status(
        self,
        service: GrpcService,
        status: Mapping[str, Any],
        renew: Callable[[GrpcService], Mapping[str, Any] | None] | None = None,
    ) -> Mapping[str, Any]:
        """Write a status; the first time nobody answers."""
        del service, renew
        if not self.is_lost:
            self.is_lost = True
            raise TimeoutError
        self.raw = {**self.raw, "status": dict(status)}
        return self.raw

    async def read(self, plural: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Read the GrpcService."""
        del plural, namespace, name
        self.reads += 1
        return self.raw


def make_handlers() -> EventHandlers:
    registries = {"default": None}
    handlers = EventHandlers(ClusterCache(registries), registries, Timings(CollectorRegistry()))
    handlers.complete |= {PODS, SERVICES}
    return handlers


async def test_a_write_without_an_answer_is_made_again() -> None:
    handlers, server = make_handlers(), ApiServer(make_raw_service())
    handlers.note_service("ADDED", server.raw)
    granter = Granter(server, handlers, handlers.claims, lambda: True, Isolation())
    running = asyncio.create_task(granter.run())
    await until(lambda: "status" in server.raw and server.raw["status"].get("claims"))
    running.cancel()


async def test_who_may_grant_no_longer_makes_no_write_again() -> None:
    """Whoever leads now may have granted the name to somebody else meanwhile, and the earlier claim would win."""
    handlers, server = make_handlers(), ApiServer(make_raw_service())
    rival = make_raw_service(uid="s2", namespace="other")
    handlers.note_service("ADDED", server.raw)
    leads = True
    granter = Granter(server, handlers, handlers.claims, lambda: leads, Isolation())
    running = asyncio.create_task(granter.run())
    await until(lambda: server.reads)
    handlers.note_service("ADDED", rival)
    assert handlers.cluster_cache.verdict("s2").reason == Reason.NAME_TAKEN
    leads = False
    await until(lambda: server.raw.get("status", {}).get("claims") or handlers.cluster_cache.verdict("s2") is ASKING)
    running.cancel()
    assert not server.raw.get("status", {}).get("claims")
