"""What is said to be wrong with a registry is what is wrong with it now, on a real etcd."""

import asyncio
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.errors import EtcdError, NoSpace, PermissionDenied
from grpc_etcd.etcd.model import TransactionResult
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.registry_controller import RegistryController, Views
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.scope import Candidate
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.conditions import until
from testbed.etcd import EtcdServer


class RefusingEtcd(Etcd):
    """A real client whose etcd lets nobody lead."""

    refusal: EtcdError = PermissionDenied("etcdserver: permission denied")

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[ops.Op], failure: Sequence[ops.Op] = ()
    ) -> TransactionResult:
        if any(isinstance(each, ops.PutOp) and each.key.startswith(b"/grpc-etcd/leader/") for each in success):
            raise self.refusal
        return await super().transaction(compare, success, failure)


async def test_what_is_told_of_a_registry_changes_with_the_reason(etcd: EtcdServer) -> None:
    reconciler, told = EventHandlers(ClusterCache(["default"]), {}, Timings(CollectorRegistry())), list[str]()
    client = RefusingEtcd(etcd.endpoints)
    controllers: list[RegistryController] = []

    def note() -> None:
        told.extend(str(controller.complaint) for controller in controllers)

    views = Views(reconciler, lambda: True, lambda: 0.0, lambda: False, lambda _: "", lambda *_: None, note)
    ttls = {"lease_ttl_seconds": 30, "leader_ttl_seconds": 1}
    controller = RegistryController("default", "complaining", client, Candidate("test"), views, Isolation(), **ttls)
    controllers.append(controller)
    reconciler.mark_complete(PODS)
    reconciler.mark_complete(SERVICES)
    running = asyncio.create_task(controller.run())
    await until(lambda: any("no replica is leader" in text and "permission denied" in text for text in told))
    client.refusal = NoSpace("etcdserver: mvcc: database space exceeded")
    await until(lambda: any("database space exceeded" in text for text in told))
    running.cancel()
    await asyncio.wait([running])
    await controller.close()
