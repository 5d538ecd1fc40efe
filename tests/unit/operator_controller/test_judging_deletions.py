"""GrpcServices that were reported deleted are judged in turns of their namespaces, however many of one were deleted."""

import asyncio
import math
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.deletions import Deletions
from grpc_etcd_operator.controller.event_handlers import SERVICES, EventHandlers
from grpc_etcd_operator.controller.resync import AT_ONCE, JUDGED_AT_ONCE, ResyncController
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.scope import Scope
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.kube.client import Client, CrdState
from grpc_etcd_operator.telemetry.metrics import Timings
from tests.unit.operator_core.conftest import make_raw_service

MANY = 20 * AT_ONCE


class Gone(Client):
    """An API server in which no GrpcService is left; it calls `on_read` with how many it has been asked for."""

    def __init__(self, on_read: Callable[[int], None]) -> None:
        super().__init__("http://127.0.0.1:1", None)  # type: ignore[arg-type]  # nothing is sent
        self.asked, self._on_read = list[str](), on_read

    async def crd_state(self) -> CrdState:
        return CrdState(served=True, terminating=False)

    async def uid_of(self, _resource: str, namespace: str, name: str) -> str | None:
        self.asked.append(f"{namespace}/{name}")
        self._on_read(len(self.asked))
        await asyncio.sleep(0)
        return None


class Judging:
    """A resync with GrpcServices that are waited for to be judged."""

    def __init__(self, on_read: Callable[[int], None] = lambda _: None) -> None:
        self.client = Gone(on_read)
        self.handlers = EventHandlers(ClusterCache(["default"]), {"default": None}, Timings(CollectorRegistry()))
        self.handlers.mark_complete(SERVICES)
        self.deletions = Deletions()
        self.resync = ResyncController(
            self.client,
            self.handlers,
            Scope(),
            lambda *_: None,
            lambda _: {},
            Isolation(),
            deletions=self.deletions,
        )

    def delete(self, namespace: str, name: str) -> None:
        """Report that a GrpcService was deleted a while ago."""
        raw = make_raw_service(f"{namespace}-{name}", name=name, namespace=namespace)
        self.handlers.note_service("ADDED", raw)
        self.deletions.waiting[f"{namespace}-{name}"] = -math.inf, self.handlers.read_service(raw)

    def judge(self) -> list[str]:
        """Judge all; return in which order."""
        while self.deletions.waiting:
            asyncio.run(self.resync._judge_deleted())
        assert not self.handlers.cluster_cache.services
        return self.client.asked


def test_one_is_judged_beside_thousands_of_another_namespace() -> None:
    judging = Judging()
    for number in range(MANY):
        judging.delete("noisy", f"s{number}")
    judging.delete("quiet", "s")
    order = judging.judge()
    assert len(order) == MANY + 1
    assert order.index("quiet/s") < AT_ONCE


def test_one_that_is_deleted_meanwhile_does_not_wait_for_thousands_of_another_namespace() -> None:
    judging = Judging(lambda count: judging.delete("quiet", "s") if count == 1 else None)
    for number in range(MANY):
        judging.delete("noisy", f"s{number}")
    assert judging.judge().index("quiet/s") <= JUDGED_AT_ONCE + 1


def test_one_that_cannot_be_judged_for_a_reason_that_nobody_foresaw_keeps_no_other_from_it() -> None:
    def fail(count: int) -> None:
        if count == 1:
            raise RuntimeError("nobody foresaw this")

    judging = Judging(fail)
    for number in range(2 * AT_ONCE):
        judging.delete("shop", f"s{number}")
    asyncio.run(judging.resync._try_judging_deleted())
    assert judging.deletions.waiting.keys() == judging.handlers.cluster_cache.services.keys() == {"shop-s0"}
    assert judging.deletions.waiting["shop-s0"][0] > time.monotonic(), "it is judged again later"
